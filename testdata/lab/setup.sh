#!/bin/bash
# Installs what the tests and the lab need on Debian or Ubuntu, as root or with sudo.
# It installs only what is missing. The arguments name more packages, each of which has a
# command of its own name ("make bench" needs some). A service that comes with a package
# (nginx, sshd) is neither started nor enabled.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
PATH=$PATH:/usr/sbin:/sbin # a plain user's path often lacks these

# A command or file that is needed, or one command or another, and the package that has it.
needed='
nginx                                            nginx-light
/usr/lib/nginx/modules/ngx_stream_module.so      libnginx-mod-stream
sshd                                             openssh-server
/usr/lib/openssh/sftp-server                     openssh-sftp-server
ssh                                              openssh-client
systemd-nspawn                                   systemd-container
/lib/systemd/systemd                             systemd
dbus-daemon                                      dbus
/lib/systemd/system/dbus.socket                  dbus
sudo                                             sudo
ip                                               iproute2
ss                                               iproute2
nsenter                                          util-linux
ps                                               procps
curl                                             curl
jq                                               jq
setfattr                                         attr
nft                                              nftables
strace                                           strace
dash                                             dash
fish                                             fish
tcsh                                             tcsh
zsh                                              zsh
groff                                            groff-base
mandoc                                           mandoc
/etc/ssl/certs/ca-certificates.crt               ca-certificates
ansible-playbook                                 ansible-core
yamllint                                         yamllint
pycodestyle                                      pycodestyle
/usr/lib/python3/dist-packages/voluptuous        python3-voluptuous
git                                              git
rsync                                            rsync
npx                                              npm
chromium|google-chrome                           chromium
'
for package; do
  needed+="$package $package"$'\n'
done

missing=()
while read -r what package; do
  [ -n "$what" ] || continue
  case $what in
    /*) [ -e "$what" ] && continue ;;
    *) command -v "${what%|*}" >/dev/null || command -v "${what#*|}" >/dev/null && continue ;;
  esac
  [[ " ${missing[*]-} " == *" $package "* ]] || missing+=("$package")
done <<<"$needed"

if ! command -v go >/dev/null; then
  echo "setup: there is no Go on the path: install it (https://go.dev/dl), then run this again" >&2
  exit 1
fi
if [ ${#missing[@]} = 0 ]; then
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "setup: this is neither Debian nor Ubuntu (no apt-get): install what these packages have there, then run this again: ${missing[*]}" >&2
  exit 1
fi
if [ "$(id -u)" != 0 ]; then
  echo "setup: to be installed: ${missing[*]}"
  exec "$here/as-root" "$0" "$@"
fi

# Which services are new tells which ones to leave switched off.
new=()
for unit in nginx ssh haproxy; do
  [ -e "/lib/systemd/system/$unit.service" ] || new+=("$unit.service")
done
[ -e /lib/systemd/system/ssh.socket ] || new+=(ssh.socket)

# Packages ask this program whether they may start a service (invoke-rc.d(8)).
policy=/usr/sbin/policy-rc.d
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if [ ! -e $policy ]; then
  trap 'rm -f "$log" $policy' EXIT
  printf '#!/bin/sh\n# Made by drainctl'\''s setup.sh, which removes it when it ends.\nexit 101\n' >$policy
  chmod 755 $policy
fi

echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update && apt-get install --yes --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
  tail -n 30 "$log" >&2
  echo "setup: apt-get could not install ${missing[*]}: see above" >&2
  exit 1
fi
for unit in ${new[@]+"${new[@]}"}; do
  [ -e "/lib/systemd/system/$unit" ] || continue
  systemctl --quiet disable "$unit" 2>/dev/null || true
  echo "setup: $unit is installed, but neither runs nor starts at boot"
done
