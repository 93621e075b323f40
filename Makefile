# What a developer types. Everything built goes to build/, and "make clean" removes it.

# More flags for go test, such as -race or -v.
TESTFLAGS ?=
FUZZTIME ?= 30s
# How often torture kills drainctl, and how often what it relies on. With the seed that
# a run prints, the same is done at the same moments again.
KILLS ?= 100
CUTS ?= 25
SEED ?= 0
# How many labs are up side by side for the lab's tests, which mostly wait.
LABS ?= 3

GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GORELEASER := github.com/goreleaser/goreleaser/v2@v2.15.1
# The Go that releases are built with.
TOOLCHAIN := $(shell sed -n 's/^toolchain //p' go.mod)

# "..." does not reach into testdata.
packages := ./... $(shell find testdata -name '*.go' -printf './%h\n' | sort -u)
programs := $(CURDIR)/build/lab
# Of the unit tests, these want root: they run nginx, count sockets, start sshd and
# make users. Without it they say what they cannot do.
rooted := ./cli ./nginx ./remote ./drain/balancer
# These too, and they print how many cases they ran. Of a test that passes, go test shows
# that only in the directory of its package.
counted := drain
lab := ./testdata/lab
as_root := $(CURDIR)/testdata/lab/as-root

# nginx and sshd are in sbin, which a plain user's path often lacks.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: build docs test check unit lab-test demo picture up bench torture fuzz clean setup programs

build:
	CGO_ENABLED=0 go build -o build/drainctl .

# The table of flags and the JSON Schemas, from the code; tests tell when they are stale.
docs:
	UPDATE_DOCS=1 go test -count=1 -run '^(TestFlagsTable|TestSchemas)$$' ./cli ./cli/show

# Everything, whatever fails on the way: one run tells all there is to mend.
test:
	@failed=; \
	$(MAKE) --no-print-directory setup || failed="$$failed setup"; \
	$(MAKE) --no-print-directory check || failed="$$failed check"; \
	$(MAKE) --no-print-directory unit || failed="$$failed unit"; \
	$(MAKE) --no-print-directory lab-test || failed="$$failed lab-test"; \
	if [ -n "$$failed" ]; then echo "make test: FAILED:$$failed" >&2; exit 1; fi; \
	echo "make test: all passed"

setup:
	@testdata/lab/setup.sh

check:
	@echo "==> golangci-lint: gofmt, go vet, staticcheck and more (.golangci.yml)"
	@go run $(GOLANGCI_LINT) run $(packages)
	@echo "==> govulncheck, with $(TOOLCHAIN)"
	@GOTOOLCHAIN=$(TOOLCHAIN) testdata/vulncheck.sh

unit:
	@echo "==> unit, CLI, SSH and nginx tests"
	@failed=; \
	go test $(TESTFLAGS) $$(go list $(packages) | grep -v -x -F "$$(go list $(rooted) $(lab) ./$(counted))") || failed=1; \
	(cd $(counted) && go test $(TESTFLAGS) -timeout 30m -exec '$(as_root) --or-not') || failed=1; \
	go test -p 1 $(TESTFLAGS) -exec '$(as_root) --or-not' $(rooted) || failed=1; \
	[ -z "$$failed" ]

# The programs are built as whoever runs make; only the test itself runs as root.
lab-test: programs packages
	@echo "==> the lab: real hosts under load (needs root)"
	@cd $(lab) && DRAINCTL_LAB_PROGRAMS=$(programs) go test -parallel $(LABS) $(TESTFLAGS) -timeout 60m -exec $(as_root)

# What "make test" does a dozen times, many more times: drainctl, the SSH sessions it
# has and the workers of nginx are killed at random moments, under load (needs root).
torture: programs
	@DRAINCTL_LAB_PROGRAMS=$(programs) go test -parallel $(LABS) $(TESTFLAGS) -v -count=1 -timeout 3h -run 'AtRandom$$' \
	  -exec $(as_root) $(lab) -args -kills $(KILLS) -cuts $(CUTS) -seed $(SEED)

programs: setup
	@mkdir -p $(programs)
	@CGO_ENABLED=0 go build -o $(programs)/drainctl .
	@CGO_ENABLED=0 go build -o $(programs)/my-web-app ./testdata/lab/app
	@CGO_ENABLED=0 go build -o $(programs)/load ./testdata/lab/load

.PHONY: packages release release-check
# Two versions of the Debian package for this machine, in the second of which agents and
# clients speak another protocol.
packages: build/tools/goreleaser
	@testdata/lab/packages.sh $(programs)

# A release, as far as it goes without publishing: built twice, at different places, it must
# be the same bytes.
release-check: build/tools/goreleaser
	@build/tools/goreleaser check
	@set -e; for n in 1 2; do \
	  packaging/clone.sh build/release/$$n; \
	  (cd build/release/$$n && GOTOOLCHAIN=$(TOOLCHAIN) $(CURDIR)/build/tools/goreleaser release --snapshot); \
	done
	@diff build/release/1/dist/checksums.txt build/release/2/dist/checksums.txt
	@packaging/check.sh build/release/1

# The release of the tag that stands here. Only CI has the tokens.
release: build/tools/goreleaser
	@GOTOOLCHAIN=$(TOOLCHAIN) build/tools/goreleaser release --clean

build/tools/goreleaser: Makefile
	@GOBIN=$(CURDIR)/build/tools go install $(GORELEASER)

# A drain and an undrain, in view, on real hosts and under load (needs root).
demo: programs
	@CGO_ENABLED=0 go build -o $(programs)/demo ./testdata/lab/demo
	@DRAINCTL_LAB_PROGRAMS=$(programs) $(as_root) $(programs)/demo

# The picture of a drain in the README, from a real one in the lab (needs root).
picture: programs
	@CGO_ENABLED=0 go build -o $(programs)/picture ./docs/picture
	@DRAINCTL_LAB_PROGRAMS=$(programs) $(as_root) $(programs)/picture docs/drain.svg

# The lab for trying things by hand, until Ctrl-C (needs root).
up: programs
	@CGO_ENABLED=0 go build -o $(programs)/up ./testdata/lab/up
	@DRAINCTL_LAB_PROGRAMS=$(programs) $(as_root) $(programs)/up

# How fast drainctl is, beside nginx and HAProxy on the same machine and in the lab (needs root).
bench: programs
	@testdata/lab/setup.sh haproxy socat
	@CGO_ENABLED=0 go build -o $(programs)/measure ./testdata/bench/measure
	@DRAINCTL_LAB_PROGRAMS=$(programs) $(as_root) $(programs)/measure -drainctl $(programs)/drainctl

# Every fuzz target for FUZZTIME each.
fuzz:
	@set -e; for package in $$(go list ./...); do \
	  for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz'); do \
	    echo "==> $$package $$target"; \
	    go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$package; \
	  done; \
	done

clean:
	rm -rf build
