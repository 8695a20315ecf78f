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
MODULES       := . tools benchmarks/peers deploy
# The last version that needs no newer Go. It is no tool of tools/go.mod: with it come a thousand modules of clouds.
GORELEASER := $(GO) run github.com/goreleaser/goreleaser/v2@v2.15.1

# What test, race and the proofs shuffle, fuzz and telemetry work on: make race PKGS=./quicx
PKGS      ?= ./...
# Passed on to every go test, and its build tags: make test TESTFLAGS='-v -run Alloc' TAGS=telemetry
TESTFLAGS ?=
TAGS      ?=
TEST       = $(GO) test $(if $(TAGS),-tags $(TAGS)) $(TESTFLAGS)
# Arguments of what measures or proves: make bench-floor FLAGS='--rounds 1 --only latency'
FLAGS     ?=

# With a profile (default.pgo) Go compiles a command and all that it imports once more. That is for commands that are
# shipped or measured; tests and lint do without.
export GOFLAGS := $(GOFLAGS) -pgo=off

# The binary of a command: felix-NAME, and felix for cmd/felix itself.
COMMANDS ?= $(notdir $(wildcard cmd/*))
binary    = $(if $(filter felix,$1),felix,felix-$(patsubst felix-%,%,$1))

##@ Every day

.PHONY: build
build: ## Build all packages, and the commands into bin/
	$(GO) build ./...
	$(foreach c,$(COMMANDS),$(GO) build -o bin/$(call binary,$c) ./cmd/$c;)

.PHONY: test
test: ## Run the tests of PKGS (all)
	$(TEST) $(PKGS)

# Subjects of older commits do not follow the rule. A shallow clone may lack that commit; then the last one is checked.
RULE_SINCE := a5ac01d04785926d5e5d7f1485f127e238a18de8
.PHONY: lint
lint: ## Check style, import rules, formatting, go.mod and outdated idioms for every build tag, and commit subjects
	@git log --no-merges --format='%h %s' $$(git cat-file -e $(RULE_SINCE) 2>/dev/null && echo $(RULE_SINCE)..HEAD || echo -1) | awk ' \
		{ subject = substr($$0, index($$0, " ") + 1) } \
		length(subject) > 72 { print "longer than 72 characters: " $$0; bad = 1 } \
		subject ~ /\.$$/ { print "ends with a full stop: " $$0; bad = 1 } \
		END { exit bad }'
	$(foreach m,$(MODULES),$(GO) -C $m mod tidy -diff;)
	$(GO) -C benchmarks/peers vet ./...
	$(GO) -C deploy vet ./...
	$(GOLANGCI_LINT) fmt --diff
	$(GOLANGCI_LINT) run
	$(GOLANGCI_LINT) run --build-tags telemetry,invariants
	$(GO) fix -diff ./...

.PHONY: fmt
fmt: ## Format all Go files, and tidy the go.mod of each module
	$(GOLANGCI_LINT) fmt
	$(foreach m,$(MODULES),$(GO) -C $m mod tidy;)

# The check compares the tree with itself before and after, so that it also works with uncommitted changes.
.PHONY: generate
generate: ## Regenerate generated files; CHECK=1 fails if that changes one
ifndef CHECK
	$(GO) generate ./...
else
	@sums() { git ls-files -z --cached --others --exclude-standard | sort -zu | \
		while IFS= read -r -d '' f; do [[ ! -f $$f ]] || sha256sum -- "$$f"; done; }; \
	before=$$(sums); \
	$(GO) generate ./...; \
	after=$$(sums); \
	diff <(echo "$$before") <(echo "$$after") || \
		{ echo 'generated files were out of date: commit what make generate changed' >&2; exit 1; }
endif

.PHONY: clean
clean: ## Remove what make built
	rm -rf bin dist

##@ Before a push

.PHONY: check
check: ## Run all that CI runs
	.ci/run

.PHONY: race
race: ## Run the tests of PKGS (all) under the race detector
	$(TEST) -race $(PKGS)

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

# The packages that the tags change, and their direct users. Both tags together, so that all is compiled once; make prove
# T=telemetry runs all tests with that tag alone.
TAGGED_PKGS ?= ./internal/... ./ring ./fanout ./quicx ./telemetry ./broker ./client ./loadgen
.PHONY: test-tags
test-tags: ## Build and test with stage timings compiled in, freed buffers poisoned and invariants checked
	$(GO) build -tags telemetry,invariants ./...
	$(GO) test -tags telemetry,invariants $(TESTFLAGS) $(TAGGED_PKGS)

.PHONY: test-modules
test-modules: ## Test the comparisons with installed systems, deploy/ with the packages, and the Python client (needs python3)
	$(GO) -C benchmarks/peers test $(TESTFLAGS) ./...
	FELIX_TEST_PYTHON=1 $(GO) test $(TESTFLAGS) ./conformance/python
	$(GO) -C deploy test $(TESTFLAGS) ./...
	if command -v hadolint; then hadolint deploy/Dockerfile; fi
	if command -v promtool; then promtool check config deploy/prometheus.yml; fi

##@ Measure (arguments in FLAGS; docs/measure/benchmarks.md says how to read it)

# How long each micro benchmark runs, how often, and where they are.
BENCHTIME  ?= 100ms
BENCHCOUNT ?= 1
BENCHPKGS  ?= ./codec ./ring ./fanout ./cache ./auth ./quicx
.PHONY: bench
bench: ## Run the micro benchmarks of each package, then the end-to-end table (about three minutes)
	$(GO) test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) -count $(BENCHCOUNT) $(BENCHPKGS)
	$(GO) run ./benchmarks endtoend $(FLAGS)

# Where tables, runs and plots are kept, each time in a directory of that day and commit; RESULTS= keeps nothing.
RESULTS ?= benchmarks/results
# The settings that the tables are made with. A sweep replaces those of the shapes and systems that it tries.
SWEEP   ?= benchmarks/peers/sweep.json
# The figures of a release that documents show. A release has a file of its own.
SUMMARY ?= benchmarks/results/0.1.0.json
# Foreign clients come in with the comparisons, so these are a module of their own.
COMMIT = "$$(git describe --always --dirty 2>/dev/null || echo unknown)"
PEERS  = $(GO) -C benchmarks/peers build -pgo=../../cmd/broker/default.pgo -o ../../bin/bench-peers . && bin/bench-peers
KEEP   = --commit $(COMMIT) --results "$(RESULTS)"

bench.floor  = $(PEERS) floor $(KEEP) $(FLAGS)
bench.peers  = $(PEERS) peers $(KEEP) $(FLAGS)
bench.matrix = $(PEERS) matrix $(KEEP) $(if $(FULL),--full) $(FLAGS)
bench.cache  = $(PEERS) cache $(FLAGS)
bench.durable = $(PEERS) durable $(KEEP) $(FLAGS)
bench.sweep  = $(PEERS) sweep --commit $(COMMIT) --out "$(SWEEP)" $(FLAGS)
bench.docs   = $(PEERS) docs --summary "$(SUMMARY)" --from "$(FROM)" docs/measure/performance.md
bench.cost   = $(GO) run ./benchmarks cost $(FLAGS)
bench.cache-ttl   = $(GO) run ./benchmarks cache-ttl $(FLAGS)
bench.cache-churn = $(GO) run ./benchmarks cache-churn $(FLAGS)
bench.compare     = BASE=$(BASE) PLANT=$(PLANT) UNLIKE=$(UNLIKE) ROUNDS=$(ROUNDS) benchmarks/compare/run.sh $(or $(FLAGS),--fanout 2 --payload 4096 --duration 2s --warmup 300ms)

# names lists what there is of a kind, and one runs one of them.
names = $(sort $(patsubst $1.%,%,$(filter $1.%,$(.VARIABLES))))
one   = $(if $(filter $2,$(call names,$1)),$($1.$2),$(error "$2": there are: $(call names,$1)))

bench-%: ## Print a table: floor, peers, matrix (FULL=1), cache, durable, cost, cache-ttl, cache-churn, sweep, docs (FROM=), compare (BASE=, ROUNDS=, PLANT=1)
	$(call one,bench,$*)

SCENARIO ?= fanout
.PHONY: profile
profile: ## Profile a broker under SCENARIO=pubsub-small|pubsub-large|fanout|latency|cache and check its hot paths; pgo makes the default.pgo, worth measures them
	$(GO) run ./profiles/capture $(FLAGS) $(SCENARIO)

.PHONY: gate
gate: ## Fail if a micro benchmark allocates or executes more than is recorded (no clocks; about 30 seconds); RECORD=1 records
	$(GO) run ./benchmarks gate $(if $(RECORD),--record)

##@ Prove (minutes to hours; .ci/nightly runs all)

# How often shuffle runs each test, and how long each fuzz target runs.
COUNT    ?= 20
FUZZTIME ?= 20s

# A proof is a variable here: make prove T=name runs prove.name.
prove.shuffle   = $(TEST) -race -shuffle=on -count=$(COUNT) -timeout=60m $(PKGS)
prove.telemetry = $(GO) test -tags telemetry $(TESTFLAGS) $(PKGS)
prove.crashes   = FELIX_CRASHES=$${FELIX_CRASHES:-48} $(GO) test -timeout 60m -v -run TestCrashes ./storage
prove.flips     = FELIX_FLIPS=all $(GO) test -timeout 8h -v -run TestFlips ./storage
prove.durable   = FELIX_DURABLE_ROWS=all $(GO) -C benchmarks/peers test -count=1 -timeout 30m -run TestDurableRows .
prove.kills     = FELIX_KILLS=$${FELIX_KILLS:-2000} $(GO) test -v -count=1 -timeout 3h -run 'TestDurableKills|TestRepeatOverKills' ./cmd/broker ./client/felixtest
prove.mutants   = FELIX_MUTANTS=1 $(GO) test ./conformance -v -count=1 -timeout=20m -run TestMutants
prove.conformance = status=0; $(GO) run ./cmd/conformance --embedded || status=1; $(GO) run ./cmd/conformance client || status=1; exit $$status
prove.chaos     = $(GO) run ./reliability chaos $(FLAGS)
prove.drain     = $(GO) run ./reliability drain $(FLAGS)
prove.flood     = $(GO) run ./reliability flood $(FLAGS)
prove.hostile   = $(GO) run ./reliability hostile $(FLAGS)
prove.isolation = $(GO) run ./reliability isolation $(FLAGS)
prove.stall     = $(GO) run ./reliability stall $(FLAGS)
prove.swaps     = $(GO) run ./reliability swaps $(FLAGS)
prove.storm     = FELIX_STORM_SEEDS=$${FELIX_STORM_SEEDS:-10000} FELIX_STORM_PROCESSES=$${FELIX_STORM_PROCESSES:-100} \
	FELIX_STORM_GRACE=$${FELIX_STORM_GRACE:-1s} FELIX_STORM_FAULTS=all $(GO) test -v -count=1 -timeout 3h -run TestStorm ./client/felixtest
prove.fuzz      = FUZZTIME=$(FUZZTIME) .ci/fuzz $(PKGS)

.PHONY: prove
prove: ## T=shuffle|fuzz|storm|crashes|flips|durable|kills|conformance|mutants|hostile|flood|stall|chaos|drain|swaps|telemetry: what each does is in CONTRIBUTING.md
	$(call one,prove,$(T))

.PHONY: isolation fuzz storm
isolation: ## Attack a broker as one tenant in all the ways that are known, and measure what another tenant feels (about 25 minutes)
fuzz: ## Run every fuzz target for FUZZTIME each (20s)
storm: ## Run clients through 10 000 random storms of faults, and 100 of brokers that are stopped and killed
isolation fuzz storm:
	$(prove.$@)

##@ Release

VERSION  ?= $(shell git describe --tags --match 'v[0-9]*' --dirty=.dirty 2>/dev/null || echo "v0.0.0-0.g$$(git describe --always --dirty=.dirty 2>/dev/null || echo unknown)")
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
DIST     ?= dist
ARCHS    ?= amd64 arm64
# PACKAGERS= builds the binaries alone, and PGO=off builds them in half the time, for tests.
PACKAGERS ?= deb rpm
PGO       ?= auto

# Times in the packages are those of the commit, so that they too are the same wherever they are built.
.PHONY: package
package: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null)
package: ## Build the commands for Linux into dist/, static and the same wherever they are built, and deb and rpm packages
	@$(foreach arch,$(ARCHS),$(foreach c,$(COMMANDS),echo $(DIST)/linux_$(arch)/$(call binary,$c); \
		CGO_ENABLED=0 GOOS=linux GOARCH=$(arch) $(GO) build -trimpath -buildvcs=false -pgo=$(PGO) -o $(DIST)/linux_$(arch)/$(call binary,$c) \
		-ldflags '-s -w -X $(MODULE)/internal/version.version=$(VERSION) -X $(MODULE)/internal/version.revision=$(REVISION)' ./cmd/$c;))
ifneq ($(strip $(PACKAGERS)),)
	$(GO) run ./cmd/felix docs --package $(DIST)/command
	$(GO) -C deploy run ./package/docs $(or $(REVISION),main) ../docs $(abspath $(DIST)/doc)
	@$(foreach arch,$(ARCHS),$(foreach packager,$(PACKAGERS),BIN=$(DIST)/linux_$(arch) COMMAND=$(DIST)/command DOC=$(DIST)/doc PACKAGE_ARCH=$(arch) \
		PACKAGE_VERSION=$(VERSION) $(GO) tool -modfile=deploy/go.mod nfpm package --config deploy/package/nfpm.yaml --packager $(packager) --target $(DIST);))
endif

.PHONY: release
release: ## Make a release of a tagged commit, as a draft on GitHub; SNAPSHOT=1 makes it in dist/ without publishing it
	$(GORELEASER) check
	$(GORELEASER) release $(if $(SNAPSHOT),--snapshot) --clean

.PHONY: help
help: # this list
	@awk -F ':.*## ' '/^##@ / { printf "%s%s\n", sep, substr($$0, 5); sep = "\n" } \
		/^[a-z%-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
