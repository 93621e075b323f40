#!/bin/sh
# Makes two versions of the Debian package for this machine, in the directory $1, as a
# release makes them. In the later one agents and clients speak another protocol.
set -eu
cd "$(dirname "$0")/../.."
mkdir -p "$1"
for version in 1.0.0 1.1.0; do
  clone=build/packages/$version
  packaging/clone.sh $clone
  sed -i "s/goos: .*/goos: [linux]/; s/goarch: .*/goarch: [$(go env GOARCH)]/; s/formats: .*/formats: [deb]/" $clone/.goreleaser.yaml
  [ $version = 1.0.0 ] || sed -i 's/^const Protocol = .*/const Protocol = 1000/' $clone/drain/balancer/agent.go
  if ! (cd $clone && SNAPSHOT=$version ../../tools/goreleaser release --snapshot --skip=archive,homebrew,sbom) >$clone/build.log 2>&1; then
    cat $clone/build.log >&2
    exit 1
  fi
  mv $clone/dist/*.deb "$1/drainctl_$version.deb"
done
