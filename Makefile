# One vocabulary for people and for CI. `make` or `make help` lists it.
#
# Needs Go, gcc (for the race detector), make and git. Every other tool is pinned in tools/go.mod and is built from
# source by `go tool` on first use, so that users of the library inherit none of them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO            ?= go
MODULE        := github.com/felix-mq/felix
TOOL          := $(GO) tool -modfile=tools/go.mod
GOLANGCI_LINT := $(TOOL) golangci-lint

# What test, race, shuffle and fuzz work on: make race PKGS=./quicx
PKGS      ?= ./...
# Passed on to every go test: make test TESTFLAGS='-v -run Alloc'
TESTFLAGS ?=
# How often shuffle runs each test.
COUNT     ?= 20
# How long each fuzz target runs.
FUZZTIME  ?= 20s
# How long each micro benchmark runs, how often, and where they are.
BENCHTIME  ?= 100ms
BENCHCOUNT ?= 1
BENCHPKGS  ?= ./codec ./ring ./fanout ./cache ./auth ./quicx
# The packages that have checks under the build tag invariants, and their direct users.
INVARIANT_PKGS ?= ./internal/... ./ring ./fanout ./quicx ./broker

# With a profile (default.pgo) Go compiles a command and all that it imports once more. That is for the commands that are
# built to be used; tests and lint do without.
export GOFLAGS := $(GOFLAGS) -pgo=off

.PHONY: build
build: ## Build all packages, and the commands into bin/
	$(GO) build ./...
	$(GO) build -pgo=auto -o bin/ ./cmd/...

.PHONY: test
test: ## Run all tests
	$(GO) test $(TESTFLAGS) $(PKGS)

.PHONY: race
race: ## Run all tests under the race detector
	$(GO) test -race $(TESTFLAGS) $(PKGS)

.PHONY: test-peers
test-peers: ## Test the comparisons with other systems, a module of their own, with those of the systems that are installed
	$(GO) -C benchmarks/peers test $(TESTFLAGS) ./...

.PHONY: test-telemetry
test-telemetry: ## Build and test with stage timings and frame counters compiled in
	$(GO) build -tags telemetry ./...
	$(GO) test -tags telemetry $(TESTFLAGS) $(PKGS)

.PHONY: test-invariants
test-invariants: ## Test with freed buffers poisoned and internal invariants checked
	$(GO) test -tags invariants $(TESTFLAGS) $(INVARIANT_PKGS)

# Systems besides the one that all tests run on. Vetting looks at tests too, and Go keeps what it has compiled: about four
# minutes at first, and seconds if nothing has changed.
CROSS ?= linux/386 linux/arm windows/amd64
.PHONY: cross
cross: export CGO_ENABLED = 0
cross: ## Build and vet for other systems and for 32 bits, and run the tests of codec, ring and fanout with 32 bits where that runs
	@for target in $(CROSS); do \
		echo "$$target"; \
		GOOS=$${target%/*} GOARCH=$${target#*/} $(GO) build ./...; \
		GOOS=$${target%/*} GOARCH=$${target#*/} $(GO) vet ./...; \
	done
	@if [[ $$($(GO) env GOHOSTOS GOHOSTARCH | xargs) == 'linux amd64' ]]; then \
		GOARCH=386 $(GO) test $(TESTFLAGS) ./codec ./ring ./fanout; \
	fi

.PHONY: shuffle
shuffle: ## Hunt flakes: COUNT (20) race runs of every test in random order
	$(GO) test -race -shuffle=on -count=$(COUNT) -timeout=60m $(TESTFLAGS) $(PKGS)

# `go test -list` prints a package's targets and then its "ok" line. The assignment keeps a compile error fatal.
.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME each (default 20s)
	@listing=$$($(GO) test -list '^Fuzz' $(PKGS)); \
	awk '/^Fuzz/ { name[++n] = $$1 } /^ok/ { for (i = 1; i <= n; i++) print $$2, name[i]; n = 0 }' <<<"$$listing" | \
	while read -r pkg target; do \
		echo "$(GO) test -run '^$$' -fuzz '^$$target$$' -fuzztime $(FUZZTIME) $$pkg"; \
		$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) "$$pkg" </dev/null; \
	done

.PHONY: storm
storm: ## Run clients through 10 000 random storms of faults, and 100 of brokers that are stopped and killed
	FELIX_STORM_SEEDS=$${FELIX_STORM_SEEDS:-10000} FELIX_STORM_PROCESSES=$${FELIX_STORM_PROCESSES:-100} FELIX_STORM_GRACE=$${FELIX_STORM_GRACE:-1s} FELIX_STORM_FAULTS=all $(GO) test -v -count=1 -timeout 3h -run TestStorm ./client/felixtest

.PHONY: conformance
conformance: ## Judge the broker and then the client by the protocol, case by case, in two tables
	@status=0; \
	$(GO) run ./cmd/conformance --embedded || status=1; \
	$(GO) run ./cmd/conformance client || status=1; \
	exit $$status

.PHONY: mutants
mutants: ## Take behaviors out of the broker, one at a time, and check that the cases notice (about two minutes)
	FELIX_MUTANTS=1 $(GO) test ./conformance -v -count=1 -timeout=20m -run TestMutants

.PHONY: hostile
hostile: ## A million damaged frames and 60 hostile scripts against a broker, with a healthy pair next to them (about two minutes)
	$(GO) run ./reliability hostile

.PHONY: flood
flood: ## What 20 000 connection attempts per second from false addresses cost, on loopback (about 80 seconds)
	$(GO) run ./reliability flood

.PHONY: stall
stall: ## What thousands of subscriptions that do not read cost those that do (about six minutes)
	$(GO) run ./reliability stall

# Arguments of the table below: make isolation ISOLATIONFLAGS='--only bombs,hot-key --rounds 1'
ISOLATIONFLAGS ?=
.PHONY: isolation
isolation: ## Attack a broker as one tenant in all the ways that are known, and measure what another tenant feels (about 25 minutes)
	$(GO) run ./reliability isolation $(ISOLATIONFLAGS)

.PHONY: cost
cost: ## What a delivery, an idle subscription and an idle topic cost the broker (about eight minutes)
	$(GO) run ./benchmarks cost

# The two files are committed: go build finds them by their name. Make them again when the hot path has changed.
.PHONY: pgo
pgo: ## Make the profiles by which the broker and loadgen are optimized (about 90 seconds)
	$(GO) run ./profiles/capture pgo

.PHONY: pgo-worth
pgo-worth: ## What these profiles are worth: five alternating rounds with and without (about six minutes)
	$(GO) run ./profiles/capture worth

SCENARIO ?= fanout
.PHONY: profile
profile: ## Profile the broker under SCENARIO=pubsub-small|pubsub-large|fanout|latency|cache, and fail if a hot path does what it must not
	$(GO) run ./profiles/capture $(SCENARIO)

.PHONY: chaos
chaos: ## Kill a broker under load 50 times, and check that nothing is lost unsaid and how soon clients are back (about three minutes)
	$(GO) run ./reliability chaos

.PHONY: crashes
crashes: ## Crash the durable log after each change of its file system, 100 000 times in all, and check what is left (about ten minutes)
	FELIX_CRASHES=$${FELIX_CRASHES:-48} $(GO) test -timeout 60m -v -run TestCrashes ./storage

.PHONY: drain
drain: ## End 50 brokers under load, and check that nothing acknowledged is lost and that readiness fell first (about two minutes)
	$(GO) run ./reliability drain

.PHONY: swaps
swaps: ## Replace a broker's certificate 200 times under load, and check that no handshake fails (about four minutes)
	$(GO) run ./reliability swaps

.PHONY: bench
bench: ## Run the micro benchmarks of each package, then the end-to-end table (about three minutes)
	$(GO) test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) -count $(BENCHCOUNT) $(BENCHPKGS)
	$(GO) run ./benchmarks endtoend

# Arguments of the tables below: make bench-floor FLOORFLAGS='-rounds 1 -only latency'
FLOORFLAGS  ?=
PEERFLAGS   ?=
MATRIXFLAGS ?=
CACHEFLAGS  ?=
# Where tables, runs and plots are kept, each time in a directory of that day and commit; RESULTS= keeps nothing.
RESULTS ?= benchmarks/results
KEEP     = -commit "$$(git describe --always --dirty 2>/dev/null || echo unknown)" -results "$(RESULTS)"

.PHONY: bench-floor
bench-floor: bin/bench-peers ## Print Felix next to a raw pipe, a bare relay and NATS with TLS, with the budget of each figure (about 16 minutes)
	bin/bench-peers floor $(KEEP) $(FLOORFLAGS)

.PHONY: bench-peers
bench-peers: bin/bench-peers ## Print Felix next to NATS, Redis and Mosquitto, in the clear and with TLS, those of them that are installed (about 14 minutes)
	bin/bench-peers peers $(KEEP) $(PEERFLAGS)

# The tables above are made with the settings in this file. A sweep replaces those of the shapes and systems that it tries:
# make bench-sweep SWEEPFLAGS='-systems nats,felix -only throughput'
SWEEP      ?= benchmarks/peers/sweep.json
SWEEPFLAGS ?=
.PHONY: bench-sweep
bench-sweep: bin/bench-peers ## Find the settings with which each system is at its best, and keep them (about two hours; needs a quiet machine)
	bin/bench-peers sweep -commit "$$(git describe --always --dirty 2>/dev/null || echo unknown)" -out "$(SWEEP)" $(SWEEPFLAGS)

.PHONY: bench-matrix
bench-matrix: bin/bench-peers ## Print Felix over payloads, fanouts and batches (about 9 minutes); FULL=1 measures every cell
	bin/bench-peers matrix $(KEEP) $(if $(FULL),-full) $(MATRIXFLAGS)

.PHONY: bench-cache
bench-cache: bin/bench-peers ## Print the cache next to Redis over TLS 1.3 and memcached, those of them that are installed (about six minutes)
	bin/bench-peers cache $(CACHEFLAGS)

# The figures of a release that documents show. A release has a file of its own.
SUMMARY ?= benchmarks/results/0.1.0.json
.PHONY: bench-docs
bench-docs: bin/bench-peers ## Take the figures of a directory of results into SUMMARY and the documents: make bench-docs FROM=benchmarks/results/...
	bin/bench-peers docs -summary "$(SUMMARY)" -from "$(FROM)" docs/measure/performance.md

# Arguments of the two below: make cache-churn CACHELIFEFLAGS='--duration 1m'
CACHELIFEFLAGS ?=

.PHONY: cache-ttl
cache-ttl: ## How far from the end of a cache entry's lifetime its end is seen, under load (about half a minute)
	$(GO) run ./benchmarks cache-ttl $(CACHELIFEFLAGS)

.PHONY: cache-churn
cache-churn: ## What a broker holds resident while ten times its cache's budget of 1 GiB goes through it (about ten minutes)
	$(GO) run ./benchmarks cache-churn $(CACHELIFEFLAGS)
# The load of the comparison below, and what it compares with: make bench-compare BASE=main ROUNDS=20
COMPAREFLAGS ?= --fanout 2 --payload 4096 --duration 2s --warmup 300ms
.PHONY: bench-compare
bench-compare: ## Is this tree slower than BASE (HEAD)? Runs both alternately and compares; PLANT=1 proves that it would notice (two minutes)
	BASE=$(BASE) PLANT=$(PLANT) UNLIKE=$(UNLIKE) ROUNDS=$(ROUNDS) benchmarks/compare/run.sh $(COMPAREFLAGS)
.PHONY: gate
gate: ## Fail if a micro benchmark allocates or executes more than is recorded (no clocks; about 30 seconds)
	$(GO) run ./benchmarks gate
.PHONY: gate-record
gate-record: ## Record what the micro benchmarks allocate and execute; needs valgrind (about a minute)
	$(GO) run ./benchmarks gate --record

# Foreign clients come in here, so it is a module of its own. Go knows when there is nothing to build.
.PHONY: bin/bench-peers
bin/bench-peers:
	$(GO) -C benchmarks/peers build -pgo=../../cmd/broker/default.pgo -o ../../bin/bench-peers .

# What is built to be shipped. PGO=off builds it in half the time, for tests.
VERSION  ?= $(shell git describe --tags --match 'v[0-9]*' --dirty=.dirty 2>/dev/null || echo "v0.0.0-0.g$$(git describe --always --dirty=.dirty 2>/dev/null || echo unknown)")
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
DIST     ?= dist
ARCHS    ?= amd64 arm64
COMMANDS ?= $(notdir $(wildcard cmd/*))
PGO      ?= auto

.PHONY: binaries
binaries: ## Build the commands for Linux into dist/, static and the same wherever they are built
	@for arch in $(ARCHS); do for command in $(COMMANDS); do \
		name=felix-$$command; \
		out=$(DIST)/linux_$$arch/$${name/felix-felix/felix}; \
		echo "$$out"; \
		CGO_ENABLED=0 GOOS=linux GOARCH=$$arch $(GO) build -trimpath -buildvcs=false -pgo=$(PGO) -o "$$out" \
			-ldflags '-s -w -X $(MODULE)/internal/version.version=$(VERSION) -X $(MODULE)/internal/version.revision=$(REVISION)' "./cmd/$$command"; \
	done; done

# Times in the packages are those of the commit, so that they too are the same wherever they are built.
.PHONY: package
package: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null)
package: binaries ## Build deb and rpm packages into dist/
	$(GO) run -pgo=off ./cmd/felix docs --package $(DIST)/command
	$(GO) -C deploy run ./package/docs $(or $(REVISION),main) ../docs $(abspath $(DIST)/doc)
	@for arch in $(ARCHS); do for packager in deb rpm; do \
		BIN=$(DIST)/linux_$$arch COMMAND=$(DIST)/command DOC=$(DIST)/doc PACKAGE_ARCH=$$arch PACKAGE_VERSION=$(VERSION) $(GO) tool -modfile=deploy/go.mod nfpm package \
			--config deploy/package/nfpm.yaml --packager $$packager --target $(DIST); \
	done; done

.PHONY: test-python
test-python: ## Run the client in Python against the test vectors and the broker; needs python3 and a package index at first
	FELIX_TEST_PYTHON=1 $(GO) test $(TESTFLAGS) ./conformance/python

.PHONY: test-deploy
test-deploy: ## Build, install and run the packages, render the chart, and hold deploy/ against what the broker knows
	$(GO) -C deploy test $(TESTFLAGS) ./...

# The last version that needs no newer Go. It is no tool of tools/go.mod: with it come a thousand modules of clouds.
GORELEASER := $(GO) run github.com/goreleaser/goreleaser/v2@v2.15.1

.PHONY: lint-deploy
lint-deploy: ## Check what CI does not for want of time or tools: goreleaser (built in four minutes at first), hadolint, promtool
	$(GORELEASER) check
	if command -v hadolint; then hadolint deploy/Dockerfile; fi
	if command -v promtool; then promtool check config deploy/prometheus.yml; fi

.PHONY: release
release: ## Make a release of a tagged commit, as a draft on GitHub
	$(GORELEASER) release --clean

.PHONY: release-snapshot
release-snapshot: ## Make a release in dist/ without publishing it
	$(GORELEASER) release --snapshot --clean

.PHONY: lint
lint: ## Check style, import rules, formatting, go.mod and outdated idioms, for every build tag
	$(GO) mod tidy -diff
	$(GO) -C tools mod tidy -diff
	$(GO) -C benchmarks/peers mod tidy -diff
	$(GO) -C benchmarks/peers vet ./...
	$(GO) -C deploy mod tidy -diff
	$(GO) -C deploy vet ./...
	$(GOLANGCI_LINT) fmt --diff
	$(GOLANGCI_LINT) run
	$(GOLANGCI_LINT) run --build-tags telemetry,invariants
	$(GO) fix -diff ./...

# Subjects of older commits do not follow the rule. A shallow clone may lack that commit; then the last one is checked.
RULE_SINCE := a5ac01d04785926d5e5d7f1485f127e238a18de8
.PHONY: lint-commits
lint-commits: ## Check commit subjects: at most 72 characters, and no full stop
	@git log --no-merges --format='%h %s' $$(git cat-file -e $(RULE_SINCE) 2>/dev/null && echo $(RULE_SINCE)..HEAD || echo -1) | awk ' \
		{ subject = substr($$0, index($$0, " ") + 1) } \
		length(subject) > 72 { print "longer than 72 characters: " $$0; bad = 1 } \
		subject ~ /\.$$/ { print "ends with a full stop: " $$0; bad = 1 } \
		END { exit bad }'

.PHONY: fmt
fmt: ## Format all Go files in place
	$(GOLANGCI_LINT) fmt

.PHONY: generate
generate: ## Regenerate generated files
	$(GO) generate ./...

.PHONY: check-api
check-api: ## Fail if docs/api is not what the public packages export
	$(GO) generate ./docs/generate
	@test -z "$$(git status --porcelain docs/api)" || { git diff docs/api; \
		echo 'docs/api was out of date: look whether the change of the API is meant, and commit it' >&2; exit 1; }

# Compares the tree with itself before and after, so that it also works with uncommitted changes.
.PHONY: check-generate
check-generate: ## Fail if make generate changes any file
	@sums() { git ls-files -z --cached --others --exclude-standard | sort -zu | \
		while IFS= read -r -d '' f; do [[ ! -f $$f ]] || sha256sum -- "$$f"; done; }; \
	before=$$(sums); \
	$(MAKE) --no-print-directory generate; \
	after=$$(sums); \
	diff <(echo "$$before") <(echo "$$after") || \
		{ echo 'generated files were out of date: commit what make generate changed' >&2; exit 1; }

.PHONY: tidy
tidy: ## Tidy the go.mod of each module
	$(GO) mod tidy
	$(GO) -C tools mod tidy
	$(GO) -C benchmarks/peers mod tidy
	$(GO) -C deploy mod tidy

.PHONY: clean
clean: ## Remove what make built
	rm -rf bin dist

.PHONY: help
help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
