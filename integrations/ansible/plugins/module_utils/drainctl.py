# Copyright (c) The drainctl authors
# SPDX-License-Identifier: MIT

"""What the modules have in common: the options, a run of drainctl, and what it says."""

import json
import re

# The options. Each is a flag of drainctl, with _ for -; none has a default here, so that
# drainctl's own defaults, its environment and its configuration file hold.

TARGET = dict(type='list', elements='str')

PLACE = dict(
    config=dict(type='path'),
    group=dict(type='list', elements='str'),
    upstream=dict(type='list', elements='str'),
    lb=dict(type='list', elements='str'),
    lb_from=dict(type='path'),
    metrics=dict(type='path'),
    parallel=dict(type='int'),
    nginx=dict(type='path'),
    nginx_conf=dict(type='path'),
    state_dir=dict(type='path'),
)

BACKEND = dict(
    identity=dict(type='path'),
    ssh_host=dict(type='str'),
    ssh_port=dict(type='int'),
    ssh_user=dict(type='str'),
)

OPERATION = dict(
    PLACE,
    **BACKEND,
    accept_pending=dict(type='bool'),
    allow_stopped_nginx=dict(type='bool'),
    allow_udp=dict(type='bool'),
    health=dict(type='str'),
    health_ca=dict(type='path'),
    health_host=dict(type='str'),
    health_timeout=dict(type='str'),
    keep=dict(type='int'),
    reason=dict(type='str'),
    reload_command=dict(type='str'),
    reload_timeout=dict(type='str'),
    service=dict(type='list', elements='str'),
    skip_unreachable_lb=dict(type='int'),
    test_command=dict(type='str'),
    together=dict(type='bool'),
    wait=dict(type='bool'),
)

# Not flags: the program itself, and its arguments.
NO_FLAG = ('executable', 'target')


def argument_spec(flags, target):
    """The argument spec of a module that has these flags."""
    return dict(flags, executable=dict(type='path', default='drainctl'), target=target)


def run(module, command, *more):
    """Runs drainctl with the module's options, and returns what it said."""
    line = [module.get_bin_path(module.params['executable'], required=True), command, '--output=json']
    line += more
    for name in sorted(module.argument_spec):
        if name not in NO_FLAG:
            line += flag(name, module.params[name])
    line += ['--'] + (module.params['target'] or [])
    code, out, err = module.run_command(line)
    try:
        return Said(code, out, err)
    except ValueError as e:
        module.fail_json(msg='drainctl said something that is not JSON: %s' % e, exit_code=code, stdout=out, stderr=err)


def flag(name, value):
    """The words of a flag on the command line; none where nothing is asked."""
    if value is None:
        return []
    if isinstance(value, bool):
        value = 'true' if value else 'false'
    values = value if isinstance(value, list) else [value]
    return ['--%s=%s' % (name.replace('_', '-'), v) for v in values]


class Said:
    """What a run of drainctl said."""

    def __init__(self, code, out, err):
        self.code, self.err = code, err.strip()
        self.objects = objects(out)
        self.result = next((o for o in reversed(self.objects) if o.get('event') == 'result'), {})
        self.plan = self.having('lbs', 'steps')

    def having(self, *fields):
        """The first object that has these fields, or an empty one."""
        return next((o for o in self.objects if all(f in o for f in fields)), {})

    def pending(self):
        """Whether the plan has a server that is not yet as wanted."""
        return any(s.get('configure') for lb in self.plan.get('lbs', []) for s in lb['report']['servers'])

    def diff(self):
        """The plan's diffs; load balancers with the same one are named together."""
        by_text = {}
        for lb in self.plan.get('lbs', []):
            text = lb['report'].get('diff')
            if text:
                by_text.setdefault(text, []).append(lb['lb'])
        return [dict(prepared='on %s\n%s' % (', '.join(lbs), text)) for text, lbs in by_text.items()]

    def warnings(self):
        """What the operator should know, though it stopped nothing."""
        findings = self.plan.get('findings', []) + self.result.get('findings', [])
        texts = [f['text'] for f in findings if f.get('warning')]
        texts += [o['text'] for o in self.objects if o.get('event') == 'warning']
        texts += [text for lb in self.having('lbs').get('lbs', []) for text in lb.get('warnings') or []]
        return list(dict.fromkeys(texts))

    def why(self):
        """Why the run failed, in drainctl's own words."""
        return self.err or self.result.get('error') or 'drainctl ended with exit code %d and said nothing' % self.code


def objects(text):
    """The JSON objects in text, and those that are fields of these, as where a document
    holds a plan. They may be one a line, or one document over many lines."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while True:
        at = re.compile(r'\s*').match(text, at).end()
        if at == len(text):
            return found
        value, at = decoder.raw_decode(text, at)
        if isinstance(value, dict):
            found.append(value)
            found += [v for v in value.values() if isinstance(v, dict)]


def operate(module, command):
    """What the modules drain and undrain do."""
    # Said in any case: an environment variable must not turn a run into a dry one.
    said = run(module, command, *flag('dry_run', module.check_mode))
    answer = dict(changed=bool(said.result.get('changed')))
    if module.check_mode:
        answer.update(changed=said.pending(), plan=said.plan)
    if module._diff:
        answer.update(diff=said.diff())
    end(module, said, **answer)


def tell(module):
    """What the module status does."""
    said = run(module, 'status')
    end(module, said, changed=False, lbs=said.having('lbs').get('lbs', []))


def end(module, said, **answer):
    """Ends the module as the run ended."""
    answer.update(exit_code=said.code, result=said.result)
    for text in said.warnings():
        module.warn(text)
    if said.code != 0:
        module.fail_json(msg=said.why(), **answer)
    module.exit_json(**answer)
