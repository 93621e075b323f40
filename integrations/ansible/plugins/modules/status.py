#!/usr/bin/python

# Copyright (c) The drainctl authors
# SPDX-License-Identifier: MIT

DOCUMENTATION = r'''
module: status
short_description: Tell which servers of an nginx pool are up, and who drained the others
description:
  - Reads nginx's configuration, drainctl's journal and the sockets of the load balancers. It changes nothing.
  - It runs C(drainctl status) on the host that the task is for or delegated to. That is a load balancer, or
    any host that reaches the load balancers over SSH, with C(lb).
author:
  - The drainctl authors (@drainctl)
extends_documentation_fragment:
  - drainctl.drainctl.drainctl
  - drainctl.drainctl.drainctl.backend
options:
  backends:
    description:
      - Count the connections on the backends as well, over SSH.
    type: bool
  target:
    description:
      - Only these backends, each an address or name as it stands in nginx's configuration.
    type: list
    elements: str
'''

EXAMPLES = r'''
- name: Look at the pool
  drainctl.drainctl.status:
    upstream: backend_servers
  delegate_to: lb1
  become: true
  register: pool

- name: Stop here while somebody has a backend out
  ansible.builtin.assert:
    that: pool.lbs | map(attribute='servers') | flatten | rejectattr('state', 'eq', 'up') | length == 0
'''

RETURN = r'''
lbs:
  description:
    - The load balancers, each with its C(servers). A server has C(upstream), C(address), C(connections),
      C(connections_on_backend) with C(backends), and C(state),
      one of C(up), C(drained), C(draining), C(undraining), C(interrupted), C(down), C(down (unmanaged)),
      C(down, not drained), C(up again) and C(removed).
    - C(up again) is a server whose C(down) somebody has removed since the drain, and C(removed) one that is
      no longer in the configuration.
  returned: always
  type: list
  elements: dict
result:
  description: The last event of the run, where there is one.
  returned: always
  type: dict
exit_code:
  description: The exit code of drainctl.
  returned: always
  type: int
  sample: 0
'''

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.drainctl.drainctl.plugins.module_utils import drainctl


def main():
    flags = dict(drainctl.PLACE, **drainctl.BACKEND, backends=dict(type='bool'))
    spec = drainctl.argument_spec(flags, drainctl.TARGET)
    drainctl.tell(AnsibleModule(argument_spec=spec, supports_check_mode=True))


if __name__ == '__main__':
    main()
