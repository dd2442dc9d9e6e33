# make help lists what there is to do.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
MAKEFLAGS += --no-builtin-rules

GO ?= go
# The linter: built here as tools/go.mod pins it, or another binary by name.
GOLANGCI_LINT ?= tools/bin/golangci-lint
# Seconds for each fuzz target and for all of them together.
FUZZ_EACH ?= 4
FUZZ_ALL ?= 110
# Packages whose tests start whole meshes and real peers, and the doubles of AWS with what asks them for everything; they run
# after all others, and not with -race; the longest begins first.
WHOLE := ./aws/internal/whole ./integration/... ./aws/internal/... ./aws/review
# What takes longest, because its tests wait for processes one after the other, begins first.
UNIT = ./cmd/... ./up ./server ./supervise ./proxy/... ./rotate ./agent $(shell $(GO) list ./... | grep -v -e /integration -e /cmd/ -e /aws/internal/ -e '/aws/review$$')

# A checkout that git refuses to read (another owner) is built without the commit in the version.
ifneq ($(shell git rev-parse --is-inside-work-tree 2>/dev/null),true)
export GOFLAGS := $(GOFLAGS) -buildvcs=false
endif

# The profile of the release build is left out where speed is not asked for: with it, every dependency is
# compiled once more.
export GOFLAGS := $(GOFLAGS) -pgo=off

# The product needs no cgo, the race detector does. Everything but the latter is built without, so that
# what takes a minute to compile (SQLite) is compiled once for the linters, the tests and the binary.
export CGO_ENABLED := 0

# What the race detector costs beyond races: a second at the end of every process, to wait for other threads' reports, and
# up to ten times as long for the arithmetic of keys, ciphers and digests, which every handshake and every file of a store
# needs. That is the standard library's, shares nothing, and goes without. What go test vets, the steps vet and lint look at.
RACE := CGO_ENABLED=1 GORACE=atexit_sleep_ms=50 $(GO) test -race -gcflags='crypto/internal/fips140/...=-race=false' -gcflags='golang.org/x/crypto/...=-race=false' -vet=off -parallel 4

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | sort | while IFS=$$'\t' read -r t d; do printf '%-10s %s\n' "$$t" "$$d"; done

.PHONY: build
build: ## Build bin/countersign, fully static
	$(GO) build -pgo=auto -o bin/countersign ./cmd/countersign

.PHONY: test
test: ## Everything a commit has to pass; .ci/run calls it
	@MAKE='$(MAKE)' tools/steps.sh peers linter format vet lint unit whole fuzz static cross tidy

.PHONY: peers
peers: ## Install the programs that tests speak to (root and apt-get), or say what is missing
	@tools/install-peers.sh

tools/bin/golangci-lint: tools/go.mod tools/go.sum
	$(GO) -C tools build -ldflags='-s -w' -o bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint

.PHONY: linter
linter: $(GOLANGCI_LINT) ## Build the pinned golangci-lint

.PHONY: format
format: $(GOLANGCI_LINT) ## Check the formatting
	@$(GOLANGCI_LINT) fmt --diff

.PHONY: fix
fix: $(GOLANGCI_LINT) ## Format every file
	@$(GOLANGCI_LINT) fmt

.PHONY: vet
vet: ## go vet, also with the build tag of the fault injection
	@$(GO) vet ./...
	@$(GO) vet -tags faultinject ./...

.PHONY: lint
lint: $(GOLANGCI_LINT) ## Run the linters of .golangci.yml
	@$(GOLANGCI_LINT) run ./...

.PHONY: unit
unit: ## Unit tests and the command's, with -race: three packages at a time, because each waits half of its time
	@$(RACE) -p 3 -timeout 15m $(UNIT)

.PHONY: scripts
scripts: ## The command's tests alone, which unit runs too: every command line in testdata, and the generated CLI reference
	@$(RACE) -timeout 15m ./cmd/...

.PHONY: whole
whole: ## Integration tests: whole meshes, real peers; never from the cache, which does not know the program that they run
	@$(GO) test -vet=off -count=1 -timeout 15m $(WHOLE)

.PHONY: fuzz
fuzz: ## Each fuzz target for a few seconds (FUZZ_EACH, FUZZ_ALL)
	@tools/fuzz.sh $(FUZZ_EACH) $(FUZZ_ALL)

.PHONY: static
static: build ## Build without cgo and see that the binary is fully static
	@$(GO) -C tools run ./static ../bin/countersign

.PHONY: cross
cross: ## See that other systems compile
	@for target in linux/arm64 darwin/arm64; do echo "$$target"; GOOS=$${target%/*} GOARCH=$${target#*/} $(GO) build ./...; done

.PHONY: tidy
tidy: ## See that go.mod lists what is used
	@$(GO) mod tidy -diff
	@$(GO) mod verify

.PHONY: generate
generate: ## Write the generated files again: the JSON Schema, the references in docs/, what doubles of AWS do
	$(GO) test -count=1 ./mesh ./cmd/countersign ./aws/internal/awstest -run 'Generated' -update

.PHONY: soak
soak: ## The long forms: minutes of load, thousands of rotations
	COUNTERSIGN_SOAK=1 $(GO) test -count=1 -timeout 3h -v $$(grep -rl --include='*_test.go' COUNTERSIGN_SOAK . | xargs -n1 dirname | sort -u)

.PHONY: bench
bench: ## Measure the sidecars beside NGINX and others, and write docs/performance.md; BENCH="--only ROW,... --runs N"
	@tools/install-peers.sh bench
	@mkdir -p bin
	$(GO) run ./bench --results bin/bench.json --document docs/performance.md $(BENCH)

.PHONY: bench-quick
bench-quick: ## The short form of bench: one run a row, beside NGINX only; writes nothing
	$(GO) run ./bench --runs 1 --duration 2s --setups ours $(BENCH)

.PHONY: pgo
pgo: ## Write cmd/countersign/default.pgo, the profile that the release is optimized by
	@tools/install-peers.sh bench
	$(GO) run ./bench/pgo

.PHONY: clean
clean: ## Remove what was built here
	rm -rf bin tools/bin
