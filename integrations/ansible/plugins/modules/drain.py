#!/usr/bin/python

# Copyright (c) The drainctl authors
# SPDX-License-Identifier: MIT

DOCUMENTATION = r'''
module: drain
short_description: Take backends out of an nginx pool without cutting a request
description:
  - Marks the backends C(down) in nginx's configuration, tests it, reloads nginx and sees that new workers serve.
  - Waits until no connection to the backends is open, and then stops their service.
  - It runs C(drainctl drain) on the host that the task is for or delegated to. That is a load balancer, or
    any host that reaches the load balancers over SSH, with C(lb).
  - A drain that already took effect changes nothing. One that fails is rolled back.
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
      - The systemd units to stop on the backends once they are drained, in this order. Without them nothing is stopped.
    type: list
    elements: str
  timeout:
    description:
      - How long to wait for open connections, such as C(90s) or C(5m). C(0) is without limit.
    type: str
  on_timeout:
    description:
      - What to do when the time is up. Roll back, leave the backends C(down) with the app running, or stop the app anyway.
    type: str
    choices: [rollback, leave, stop]
  threshold:
    description:
      - Drained at this many open connections or fewer.
    type: int
  interval:
    description:
      - How often connections are counted.
    type: str
  poll:
    description:
      - Where connections are counted. C(ss) is on the backend over SSH, C(lb) is on the load balancer.
    type: str
    choices: [ss, lb, stub_status]
  status_url:
    description:
      - The URL of C(stub_status) on the backend's own nginx, for C(poll=stub_status).
    type: str
  stop_timeout:
    description:
      - How long stopping the service may take.
    type: str
  min_up:
    description:
      - How many live servers each upstream must keep.
    type: int
  ignore_peer:
    description:
      - Networks whose new connections to the backends do not matter, as those of monitoring.
    type: list
    elements: str
  allow_all_addresses:
    description:
      - Drain a server whose name has several addresses.
    type: bool
  allow_direct:
    description:
      - Drain a target that is also reached outside its upstreams.
    type: bool
  allow_other_names:
    description:
      - Drain a target that is also a server under another name, or whose host is one on another port.
    type: bool
  allow_shutdown_timeout:
    description:
      - Drain although nginx's C(worker_shutdown_timeout) is shorter than C(timeout).
    type: bool
'''

EXAMPLES = r'''
- name: Drain this backend on the load balancer
  drainctl.drainctl.drain:
    target: "{{ ansible_host }}"
    service: my-web-app
    reason: kernel update
  delegate_to: lb1
  become: true

- name: Drain this backend on all load balancers, from the control node
  drainctl.drainctl.drain:
    target: "{{ ansible_host }}"
    service: my-web-app
    lb:
      - deploy@lb1
      - deploy@lb2
  delegate_to: localhost
'''

RETURN = r'''
result:
  description: The last event of the run, with C(operation), C(result), C(findings), C(state) and C(next).
  returned: always
  type: dict
  sample: {"event": "result", "kind": "drain", "targets": ["192.168.1.10"], "result": "done", "exit_code": 0, "changed": true}
exit_code:
  description:
    - The exit code of drainctl. 0 done, 1 failed and as before, 2 usage, 3 not drained in time, 4 refused with
      nothing touched, 5 a person must look, 130 interrupted and rolled back.
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
    allow_all_addresses=dict(type='bool'),
    allow_direct=dict(type='bool'),
    allow_other_names=dict(type='bool'),
    allow_shutdown_timeout=dict(type='bool'),
    ignore_peer=dict(type='list', elements='str'),
    interval=dict(type='str'),
    min_up=dict(type='int'),
    on_timeout=dict(type='str', choices=['rollback', 'leave', 'stop']),
    poll=dict(type='str', choices=['ss', 'lb', 'stub_status']),
    status_url=dict(type='str'),
    stop_timeout=dict(type='str'),
    threshold=dict(type='int'),
    timeout=dict(type='str'),
)


def main():
    spec = drainctl.argument_spec(FLAGS, dict(drainctl.TARGET, required=True))
    drainctl.operate(AnsibleModule(argument_spec=spec, supports_check_mode=True), 'drain')


if __name__ == '__main__':
    main()
