# Thin targets: what they do is in Rust, in e2e/. Names and variables are an interface that people's scripts rely on.
CLUSTER ?= towpath
NODES ?= 3
CONFIG ?= manifests/samples/default.yaml
IMAGE ?= target/image/towpath.tar

CARGO ?= cargo
TOOL = $(CARGO) run --quiet --locked --package towpath-e2e --bin towpath-cluster --

.PHONY: help demo test unit check generate image cluster-up cluster-load deploy cluster-down bench

help: ## Show this help
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Show everything: a three-node Kubernetes, Towpath on it, pods that talk and obey a policy
	@$(TOOL) demo

test: ## Run every test, those on the embedded cluster too
	@$(TOOL) prepare
	$(CARGO) test --locked --workspace

unit: ## Run the tests that need neither root nor a cluster
	@$(TOOL) unit

check: ## Check format, lints, documentation, dependencies and licences
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items
	@$(TOOL) deny

generate: ## Write manifests/ anew from the Rust types
	$(CARGO) run --quiet --locked --package towpath-crds --bin crdgen
	$(CARGO) run --quiet --locked --package towpath-operator --bin manifestgen

image: ## Build Towpath's image as an OCI archive, target/image/towpath.tar
	@$(TOOL) image

cluster-up: ## Start a cluster without a pod network [NODES=3] [CLUSTER=towpath]
	@$(TOOL) up --name $(CLUSTER) --nodes $(NODES)

cluster-load: ## Import a docker or OCI archive into every node [IMAGE=archive.tar] [CLUSTER=towpath]
	@$(TOOL) load --name $(CLUSTER) --image $(IMAGE)

deploy: ## Install Towpath and a NetworkConfig, and wait for Ready [CLUSTER=towpath] [CONFIG=file]
	@$(TOOL) deploy --name $(CLUSTER) --config $(CONFIG)

cluster-down: ## Remove a cluster and everything of it [CLUSTER=towpath]
	@$(TOOL) down --name $(CLUSTER)

bench: ## Measure, with a report in target/bench/
	@$(CARGO) build --quiet --release --locked --package towpath-e2e --bins
	@$(CARGO) run --quiet --release --locked --package towpath-e2e --bin towpath-bench
