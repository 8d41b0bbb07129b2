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

.PHONY: image
image: ## Build target/guest/debian-12.raw, the Debian guest image
	tools/setup-host image
	tools/build-guest-image
