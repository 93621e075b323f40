#!/bin/sh
# Checks what a release that was built at $1 consists of.
set -eu
cd "$1"

sed -n 's/.*manpage "\(.*\)"/\1/p' dist/homebrew/Casks/drainctl.rb | sort >build/named
(cd build/assets && ls man/*) | sort >build/made
if ! diff build/named build/made >&2; then
  echo "release: the manual pages that .goreleaser.yaml names for Homebrew (<) are not those that are made (>)" >&2
  exit 1
fi
for arch in amd64 arm64; do
  for system in linux darwin; do
    ls dist/drainctl_*_${system}_$arch.tar.gz dist/drainctl_*_${system}_$arch.cdx.json >/dev/null
  done
  for format in deb rpm apk; do
    ls dist/drainctl_*_linux_$arch.$format >/dev/null
  done
done
echo "release: $(wc -l <dist/checksums.txt) files, the same in both builds"
