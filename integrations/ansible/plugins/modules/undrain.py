#!/usr/bin/python

# Copyright (c) The drainctl authors
# SPDX-License-Identifier: MIT

DOCUMENTATION = r'''
module: undrain
short_description: Put backends back into an nginx pool
description:
  - Starts the service of the backends that a drain has stopped, waits until they are healthy, clears their C(down)
    mark in nginx's configuration, reloads nginx and sees that new workers serve.
  - It runs C(drainctl undrain) on the host that the task is for or delegated to. That is a load balancer, or
    any host that reaches the load balancers over SSH, with C(lb).
  - An undrain that already took effect changes nothing.
author:
  - The drainctl authors (@drainctl)
extends_documentation_fragment:
  - drainctl.drainctl.drainctl
  - drainctl.drainctl.drainctl.backend
  - drainctl.drainctl.drainctl.operation
options:
  target:
    description:
      - The backends, each an address or name as it stands in nginx's configuration, with or without its port.
    type: list
    elements: str
    required: true
  service:
    description:
      - The systemd units to start on the backends, in the order of the drain. Without them, those that the drain stopped.
    type: list
    elements: str
  as_recorded:
    description:
      - Use the service, SSH host and URL that another user recorded when they drained the target.
    type: bool
  force:
    description:
      - Clear a C(down) that drainctl has not put there, too.
    type: bool
'''

EXAMPLES = r'''
- name: Put this backend back on the load balancer, once it answers
  drainctl.drainctl.undrain:
    target: "{{ ansible_host }}"
    health: "http://{address}:{port}/health"
  delegate_to: lb1
  become: true
'''

RETURN = r'''
result:
  description: The last event of the run, with C(operation), C(result), C(findings), C(state) and C(next).
  returned: always
  type: dict
  sample: {"event": "result", "kind": "undrain", "targets": ["192.168.1.10"], "result": "done", "exit_code": 0, "changed": true}
exit_code:
  description:
    - The exit code of drainctl. 0 done, 1 failed and as before, 2 usage, 4 refused with nothing touched,
      5 a person must look, 130 interrupted and rolled back.
  returned: always
  type: int
  sample: 0
plan:
  description: What a run would do, and what speaks against it.
  returned: in check mode
  type: dict
'''

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.drainctl.drainctl.plugins.module_utils import drainctl

FLAGS = dict(
    drainctl.OPERATION,
    as_recorded=dict(type='bool'),
    force=dict(type='bool'),
)


def main():
    spec = drainctl.argument_spec(FLAGS, dict(drainctl.TARGET, required=True))
    drainctl.operate(AnsibleModule(argument_spec=spec, supports_check_mode=True), 'undrain')


if __name__ == '__main__':
    main()
