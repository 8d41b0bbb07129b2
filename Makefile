# Every target does its own set-up, and is quick when there is nothing to do.

.POSIX:
.DEFAULT_GOAL = help

.PHONY: help
help: ## Show what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | \
	    while IFS='|' read -r target text; do printf '  make %-10s %s\n' "$$target" "$$text"; done

.PHONY: setup
setup: ## Install what is missing on this host, build the guest image
	tools/setup-host
	tools/build-guest-image

.PHONY: demo
demo: ## Play the README's diagram with real virtual machines, against a stand-in for GitHub
	tools/setup-host run image build
	tools/build-guest-image
	cargo build --release --locked --package forrest --package forrest-demo
	target/release/forrest-demo

.PHONY: bench
bench: ## Measure Forrest's figures; `make bench ONLY=forks` measures a part
	tools/setup-host
	tools/build-guest-image
	cargo build --release --locked --package forrest --package forrest-simulate --package forrest-bench
	target/release/forrest-bench $(ONLY)

.PHONY: test
test: ## Run all tests, those with real virtual machines included
	tools/setup-host
	tools/build-guest-image
	tools/fetch-github-contract
	cargo nextest run --locked --workspace --no-fail-fast

.PHONY: simulate
simulate: ## Live through simulated days of a hostile world: make simulate SEEDS=1000 FIRST_SEED=1
	tools/setup-host build
	cargo build --release --locked --package forrest-simulate
	target/release/forrest-simulate --seeds $${SEEDS:-1000} --first-seed $${FIRST_SEED:-1}

.PHONY: chaos
chaos: ## Let everything go wrong around jobs on real virtual machines: make chaos JOBS=200 SEED=1
	tools/setup-host
	tools/build-guest-image
	cargo build --release --locked --package forrest --package forrest-chaos
	target/release/forrest-chaos --jobs $${JOBS:-200} --seed $${SEED:-1}

.PHONY: mutants
mutants: ## Change the core in small ways; its tests have to notice: make mutants FILES=crates/core/src/jobs.rs
	tools/setup-host build test
	FILES="$(FILES)" SHARD="$(SHARD)" tools/mutants

.PHONY: security
security: ## Attack Forrest from real guests and from outside; `make security PARTS=webhook` makes a part
	tools/setup-host run image build fuzz
	tools/build-guest-image
	cargo build --release --locked --package forrest --package forrest-demo --package forrest-security
	target/release/forrest-security $(PARTS)

.PHONY: image
image: ## Build target/guest/debian-12.raw, the Debian guest image
	tools/setup-host image
	tools/build-guest-image
