#!/bin/sh
# Runs govulncheck with the database at vuln.go.dev. Where that is not reached, the same
# reports come from the module golang.org/x/vulndb. Where neither is, nothing was checked:
# that is said, and on GitHub, which reaches both, it is an error.
set -eu
cd "$(dirname "$0")/.."
govulncheck() { go run golang.org/x/vuln/cmd/govulncheck@v1.9.0 "$@" ./...; }
said=build/vulncheck.txt
mkdir -p build

govulncheck >$said 2>&1 && { grep "^No vulnerabilities" $said; exit; }
if ! grep -q 'fetching vulnerabilities' $said; then
  cat $said >&2
  exit 1
fi
if module=$(go mod download -json golang.org/x/vulndb@latest 2>>$said); then
  field() { printf '%s' "$module" | sed -n "s/.*\"$1\": \"\(.*\)\".*/\1/p"; }
  db=$PWD/build/vulndb/$(field Version)
  [ -d "$db/index" ] || go run golang.org/x/vulndb/cmd/indexdb@latest -vulns "$(field Dir)/data/osv" -out "$db"
  echo "vuln.go.dev is not reached: golang.org/x/vulndb $(field Version) is asked"
  govulncheck -db "file://$db" >$said 2>&1 || { cat $said >&2; exit 1; }
  grep "^No vulnerabilities" $said
  exit
fi
cat $said >&2
echo "WARNING: no database of vulnerabilities is reached: nothing was checked for them" >&2
[ -z "${GITHUB_ACTIONS:-}" ]
