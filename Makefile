# weir: make run to serve, make test to test. make help lists the rest.

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
FUZZTIME ?= 10s
ARGS     ?=

STATICCHECK := .tools/bin/staticcheck
STATICCHECK_VERSION := v0.8.2

.PHONY: help build run test race lint fuzz bench soak clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 10

build: ## build bin/weir
	$(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/weir ./cmd/weir

run: build ## build, and serve on 127.0.0.1:5000 (more flags: make run ARGS="...")
	./bin/weir serve $(ARGS)

test: ## install what the tests need, once, and run them all
	conformance/setup.sh
	$(GO) test -count=1 -timeout 25m ./...

race: ## run the tests that need no other programs with the race detector
	$(GO) test -race -timeout 25m $$($(GO) list ./... | grep -v /conformance)
	$(GO) test -race -timeout 5m ./conformance -run '^(TestLayers|TestUpstream|TestStore)'

lint: $(STATICCHECK) ## gofmt, go vet, staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$unformatted" ]; then echo "not gofmt'd:" $$unformatted; exit 1; fi
	$(GO) vet ./...
	$(STATICCHECK) ./...

$(STATICCHECK):
	GOBIN=$(CURDIR)/.tools/bin $(GO) install honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION)

fuzz: ## fuzz every parser for FUZZTIME (10s) each
	@set -e; grep -rlE '^func Fuzz' --include='*_test.go' . | xargs -n1 dirname | sort -u | while read dir; do \
		for target in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]*' $$dir/*_test.go | sed 's/func //'); do \
			echo "== $$dir $$target"; \
			$(GO) test $$dir -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s; \
		done; \
	done

bench: build ## compare with distribution's proxy and nginx's cache, measure a chain of nodes (root), time the parts
	conformance/setup.sh
	$(GO) run ./conformance/bench
	$(GO) run ./conformance/bench -wan
	$(GO) test -run '^$$' -bench . -benchmem $$($(GO) list ./... | grep -v /conformance)

soak: build ## run the concurrency and failure tests again and again
	$(GO) test -race -count 10 -timeout 30m ./registry/... ./cachetiers/...
	WEIR_SOAK=1 $(GO) test -v -timeout 30m -run '^(TestReplay|TestMillion)$$' ./cachetiers
	WEIR_SOAK=1 $(GO) test -v -count 1 -timeout 10m -run '^TestStrangersLearnNothing$$' ./oci ./npm
	WEIR_SOAK=1 $(GO) test -v -count 1 -timeout 20m -run '^(TestIsolation|TestOCIBearerEnds)$$' ./conformance
	WEIR_SOAK=200 $(GO) test -count 1 -timeout 60m -run '^TestKill$$' -v ./cachetiers
	WEIR_SOAK=200 $(GO) test -count 1 -timeout 60m -run '^(TestMetadataKill|TestUnreliable)$$' -v ./registry/names/...
	WEIR_SOAK=200 $(GO) test -count 1 -timeout 30m -run '^TestKilled$$' -v ./registry/audit
	WEIR_SOAK=200 $(GO) test -count 1 -timeout 60m -run '^TestChain(Restarts|Shared.*|Silence|OtherDatabase|Restored|DamagedCopy)$$' -v ./conformance

clean: ## remove what was built; tools and data stay
	rm -rf bin
	$(GO) clean -testcache
