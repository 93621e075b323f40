# Copyright (c) The drainctl authors
# SPDX-License-Identifier: MIT


class ModuleDocFragment:
    """Options that are documented once."""

    DOCUMENTATION = r'''
requirements:
  - drainctl on the host that the task is for or delegated to
notes:
  - Each option is the flag of drainctl of the same name, with C(_) for C(-). What is not given here is as
    drainctl's own defaults on that host say.
options:
  executable:
    description:
      - The drainctl program.
    type: path
    default: drainctl
  config:
    description:
      - A configuration file of drainctl, on the host that drainctl runs on.
    type: path
  group:
    description:
      - Groups of load balancers in the configuration file.
    type: list
    elements: str
  upstream:
    description:
      - Only in these upstreams.
    type: list
    elements: str
  lb:
    description:
      - Load balancers, each C(HOST), C(USER@HOST) or C(HOST:PORT), that drainctl reaches over SSH. Without
        it, the host that the task is for or delegated to is the load balancer.
    type: list
    elements: str
  lb_from:
    description:
      - A file with load balancers, one a line.
    type: path
  metrics:
    description:
      - A file that metrics are written to, for the textfile collector of node_exporter.
    type: path
  parallel:
    description:
      - How many load balancers are asked at once.
    type: int
  nginx:
    description:
      - The nginx binary on the load balancer.
    type: path
  nginx_conf:
    description:
      - The main configuration file of nginx on the load balancer.
    type: path
  state_dir:
    description:
      - The directory of the journal and the locks on the load balancer.
    type: path
'''

    BACKEND = r'''
options:
  identity:
    description:
      - The private key for the login on the backend.
    type: path
  ssh_host:
    description:
      - The host to log in to, when it is not the address in nginx's configuration.
    type: str
  ssh_port:
    description:
      - The port of the backend's sshd.
    type: int
  ssh_user:
    description:
      - The user to log in as on the backend.
    type: str
'''

    OPERATION = r'''
options:
  accept_pending:
    description:
      - Files were changed since nginx was last loaded, and this reload may put them live.
    type: bool
  allow_stopped_nginx:
    description:
      - Load balancers whose nginx is stopped are edited and tested, too. It loads the files when it starts.
    type: bool
  allow_udp:
    description:
      - nginx passes UDP to the upstreams of the target, and the reload ends the sessions.
    type: bool
  health:
    description:
      - The check that must pass several times in a row before a backend returns. Either C(tcp), a connection from
        the load balancer, or a URL, in which C({host}), C({address}), C({port}) and C({upstream}) are filled in.
    type: str
  health_ca:
    description:
      - Certificates in PEM that may sign that of the health URL, beside those that the load balancer trusts.
    type: path
  health_host:
    description:
      - The Host header of the health URL, and the name in its certificate.
    type: str
  health_timeout:
    description:
      - How long to wait until the check passes. C(0) is without limit.
    type: str
  keep:
    description:
      - How many operations are kept in the history.
    type: int
  reason:
    description:
      - Why, for the journal and for others who look.
    type: str
  reload_command:
    description:
      - The command that reloads nginx, in place of C(SIGHUP) to its master.
    type: str
  reload_timeout:
    description:
      - How long a new generation of workers may take to serve.
    type: str
  skip_unreachable_lb:
    description:
      - Leave out up to this many load balancers that cannot be reached. They may still send requests to the target.
    type: int
  test_command:
    description:
      - The command that tests the configuration, in place of C(nginx -t).
    type: str
  together:
    description:
      - If one of several targets fails, roll all of them back, not that one alone.
    type: bool
  wait:
    description:
      - Wait while another operator holds the lock on a target.
    type: bool
'''
