#!/bin/sh
# Makes what a release has beside the program, from the program itself, in build/assets:
# completions, and manual pages as Debian wants them compressed. $1 is the version.
set -eu
cd "$(dirname "$0")/.."
out=build/assets
rm -rf $out
mkdir -p $out/completions $out/man
# For this machine, whatever system the release is for. The pages have the date of the commit.
GOOS='' GOARCH='' CGO_ENABLED=0 go build -buildvcs=auto -ldflags "-X github.com/drainctl/drainctl/cli.version=$1" -o $out/drainctl .
for shell in bash zsh fish; do
  $out/drainctl completion $shell >$out/completions/drainctl.$shell
done
$out/drainctl man $out/man
gzip -9n $out/man/*.1
