#!/bin/sh
# Makes a clone of the repository at $1, with the files as they stand here: a build in it
# has other paths and times, a remote, and no other difference.
set -eu
cd "$(dirname "$0")/.."
rm -rf "$1"
git clone --quiet --no-checkout . "$1"
git ls-files -z --cached --others --exclude-standard --deduplicate | xargs -0 cp --parents --target-directory "$1"
