# Two commands do everything: `make up` runs the demo, `make test` checks the whole project.
# Both install what they need; each step that needs the network says what it fetches.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:

VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help up test contracts bench bench-gateway soak fuzz fmt lint build clean tools-cargo tools-nats tools-postgres tools-edge tools-deploy tools-s3 tools-python tools-browser tools-bench tools-fuzz

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

up: tools-cargo tools-nats ## Build Stepcast and run the demo on http://127.0.0.1:8000
	@echo "==> building (fetches crates on the first run, and takes some minutes then)"
	cargo build --release --locked --bin stepcast
	exec target/release/stepcast up --demo $(ARGS)

test: tools-cargo tools-nats tools-postgres tools-edge tools-deploy tools-python tools-browser ## Format, lint, build and run every test
	@./.ci/check

bench: tools-cargo tools-nats ## Measure; prints ratios and figures of one run
	cargo build --release --locked --bins
	target/release/stepcast-bench $(ARGS)

bench-gateway: tools-cargo tools-nats tools-bench ## Measure the gateway beside its peers, and write docs/BENCHMARKS.md; ARGS narrow it
	cargo build --release --locked -p stepcast-gateway -p stepcast-gateway-bench
	target/release/stepcast-gateway-bench --write docs/BENCHMARKS.md $(ARGS)

soak: tools-cargo tools-nats tools-postgres tools-edge tools-deploy tools-s3 tools-python tools-browser ## The long versions of tests that have one
	STEPCAST_SOAK=1 ./.ci/check

fuzz: tools-cargo tools-fuzz ## Let a fuzzer loose on the gateway's parsers, 60 s each; ARGS="300 ws_decode" for one and longer
	@./.ci/fuzz $(ARGS)

contracts: tools-cargo ## Write docs/contracts from the types
	cargo run --locked --bin stepcast -- contracts --out docs/contracts

fmt: ## Format the code
	cargo fmt --all

lint: tools-cargo ## Format check and clippy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

build: tools-cargo ## Build every binary, unoptimised
	cargo build --workspace --bins --locked

clean: ## Remove what was built and installed here
	rm -rf target $(VENV)

tools-cargo:
	@./.ci/install cargo

tools-nats:
	@./.ci/install nats

tools-postgres:
	@./.ci/install postgres

tools-edge:
	@./.ci/install edge

tools-deploy:
	@./.ci/install deploy

tools-s3:
	@./.ci/install s3

tools-python:
	@./.ci/install python

tools-browser:
	@./.ci/install browser

tools-bench:
	@./.ci/install bench

tools-fuzz:
	@./.ci/install fuzz
