# The few commands that everybody uses; CI uses the same (.ci/run).
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

# Integration tests run real nodes, each with a few threads: more of them at once than processors only makes them slow.
JOBS ?= $(shell nproc)
CARGO := cargo
export CARGO_TERM_COLOR ?= auto

# The last commit whose layouts could not change: what `make test-upgrade` sets beside today's.
BEFORE ?= 6209b9b

.PHONY: help demo build test tools fmt clippy unit doc layers test-root test-net test-upgrade test-acme bench bench-quick deny

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

build: ## The two programs, in release form: target/release/afar and target/release/afard
	@$(CARGO) build --release --locked -p afar -p afard

demo: build ## Three nodes on this machine, one burns, nothing is lost
	@target/release/afar demo

test: tools fmt clippy unit doc layers ## Everything that a change must pass, then the demo itself
	@$(MAKE) --no-print-directory demo

tools: ## What the other targets need is there, or is installed
	@cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	@cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
	@command -v curl >/dev/null || { echo "make: curl is needed: the tests ask the HTTP port with it" >&2; exit 2; }
	@if ! command -v cc >/dev/null; then # the TLS library and the allocator are partly written in C
	  echo "make: a C compiler is needed" >&2
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -q && apt-get install -y -q build-essential; else exit 1; fi
	fi

fmt: ## Formatting is as rustfmt.toml says
	@$(CARGO) fmt --all --check

clippy: ## No warning anywhere
	@$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

# The programs are built first: the end-to-end tests start them. Always of the whole workspace: one package alone has other
# features, and everything would be built twice.
unit: ## All tests: units, properties, crashes, and real nodes from end to end
	@$(CARGO) build --locked --workspace --all-targets
	if cargo nextest --version >/dev/null 2>&1; then
	  $(CARGO) nextest run --locked --workspace --no-fail-fast
	  $(CARGO) test --locked --workspace --doc
	else
	  $(CARGO) test --locked --workspace --no-fail-fast
	fi

doc: ## The documentation builds, private items included
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items --quiet

# absent PACKAGE 'a|b|c': none of these crates is among what PACKAGE links.
define absent
	tree=$$($(CARGO) tree --locked -p $(1) -e normal --prefix none --format '{p}')
	if found=$$(grep -E '^($(2)) v' <<<"$$tree" | sort -u); then
	  echo "$(1) must not depend on:" >&2; echo "$$found" >&2; exit 1
	fi
endef

layers: ## Dependencies point down only
	@$(call absent,afar-model,afar-proto|afar-store|afard|afar|tokio|tonic|prost|sled|rand)
	$(call absent,afar-proto,afar-store|afard|afar|sled|ring)
	$(call absent,afar-store,afar-proto|afard|afar|tonic|prost|hyper|ring)
	$(call absent,afar,afar-store|afard|sled|ring)
	$(call absent,afard,afar|ring)
	echo "dependencies point down only"

test-root: ## The tests that need root: a full disk, on a small tmpfs
	@$(CARGO) build --locked --workspace --all-targets
	AFAR_TEST_ROOT=1 $(CARGO) test --locked --workspace --test e2e full_disk -- --nocapture

test-net: ## The tests that need root for machines of their own: sites cut, joined, drained, burnt, in network namespaces
	@$(CARGO) build --locked --workspace --all-targets
	AFAR_TEST_NET=1 $(CARGO) test --locked --workspace --test net -- --test-threads 2

# The earlier version is built from its own files in a target folder of its own: once, which takes some minutes.
test-upgrade: ## The tests that need an earlier version: nodes and clients of that and of today's serve one cluster
	@if ! git cat-file -e '$(BEFORE)^{commit}' 2>/dev/null; then
	  echo "make: commit $(BEFORE) is not here; if this clone is shallow, \`git fetch --unshallow\` brings it" >&2; exit 2
	fi
	before=$(CURDIR)/target/before/$(BEFORE)
	if [ ! -e "$$before/source/Cargo.toml" ]; then
	  rm -rf "$$before/source"; mkdir -p "$$before/unpacked"
	  git archive '$(BEFORE)' | tar -x -C "$$before/unpacked"
	  mv "$$before/unpacked" "$$before/source"
	fi
	(cd "$$before/source" && CARGO_TARGET_DIR="$$before" $(CARGO) build --locked -p afar -p afard)
	$(CARGO) build --locked --workspace --all-targets
	AFAR_TEST_BEFORE="$$before/debug" $(CARGO) test --locked --workspace --test upgrade -- --ignored --test-threads 2

test-acme: ## The test that needs a real ACME server: Pebble (Debian: apt-get install pebble), and its names server
	@for program in pebble pebble-challtestsrv curl; do
	  command -v $$program >/dev/null || { echo "make: $$program is needed: Debian has both of Pebble's programs in package pebble" >&2; exit 2; }
	done
	$(CARGO) build --locked --workspace --all-targets
	$(CARGO) test --locked --workspace --test e2e acme::a_real_server -- --ignored --nocapture

bench: build ## The benchmark suite: every figure beside the machine's own floor (some minutes)
	@$(CARGO) run --release --locked -p afar-tests --bin bench --

bench-quick: build ## The same with small numbers, to see that it runs
	@$(CARGO) run --release --locked -p afar-tests --bin bench -- --quick

deny: ## Licences, advisories, banned crates (needs cargo-deny)
	@command -v cargo-deny >/dev/null || { echo "make deny needs cargo-deny: cargo install --locked cargo-deny" >&2; exit 2; }
	cargo deny --locked check
