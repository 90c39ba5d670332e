# Every target is documented by the comment after '##'; `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export GOTOOLCHAIN := local

TOOLS := go tool -modfile=proto/tools.mod
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.release=$(VERSION)
FUZZTIME ?= 20s
SCENARIO ?= plain

.PHONY: help run build test slow bench load peers fuzz golden generate lint

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: build ## Run a cluster in one process, with two demo upstreams, on 127.0.0.1:8080; ARGS are its further flags
	./bin/portcullis standalone --demo --data-dir portcullis-data $(ARGS)

build: ## Build the one binary into bin/
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/portcullis ./deploy/portcullis

test: ## Run the unit, conformance and cluster tests with the race detector (under 4 minutes)
	go test -race -timeout 6m ./...
	@# Allocations are counted without the detector, which makes some.
	go test -run 'AllocatesNothing$$' ./dataplane/gateway ./dataplane/http2

slow: ## Run the tests that take long: external etcd and NATS clusters, faults, processes
	go test -tags slow -timeout 20m -p 1 -run '^TestSlow' ./...

bench: ## Measure every figure that has a target and print the table
	go run ./loadtest/bench

peers: ## Measure side by side with other gateways, those that are installed (under 20 minutes); ARGS are its flags
	go run ./loadtest/peers $(ARGS)

load: ## Run the scenario SCENARIO (plain) of loadtest/scenarios and hold it to its budgets; ARGS are further flags
	go run ./loadtest/load $(ARGS) $(SCENARIO)

fuzz: ## Run each fuzz target for FUZZTIME (20s)
	@set -e; for pkg in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
	  for f in $$(grep -ho '^func Fuzz[A-Za-z0-9_]*' $$pkg/*_test.go | sed 's/func //' | sort -u); do \
	    echo "fuzz $$pkg $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x $$pkg; done; done

golden: ## Rewrite the golden files; read the diff like code
	go test ./pkg/config/... ./dataplane/policy/... ./controlplane/stream/... ./deploy/... -run 'Golden|Transcript' -update

generate: ## Regenerate Go and OpenAPI from the protos, offline
	cd proto && go tool -modfile=tools.mod buf generate

lint: ## Check format, vet, staticcheck and the protos
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "not gofmt'd:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet -tags slow ./...
	$(TOOLS) staticcheck -tags slow ./...
	cd proto && go tool -modfile=tools.mod buf lint
