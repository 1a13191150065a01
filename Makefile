# Everything is a cargo xtask; these are the names that people type.
.PHONY: help build demo test bench clean

help: ## What there is to make
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile | expand -t 14

build: ## Install what is missing, build everything into build/root
	cargo xtask setup build
	cargo xtask dist

demo: ## Run a real Debian image in its own microVM
	cargo xtask demo

test: ## Format, lints, unit tests, the agent's suite, and the end-to-end suite on a real KVM
	cargo xtask test

bench: ## Time a container's start, stage by stage
	cargo xtask bench

clean: ## Remove what was built, downloads included
	cargo clean
	rm -rf build
