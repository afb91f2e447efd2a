# Thin targets: the work is done in Rust, in e2e/. Names and variables are an interface that scripts rely on.
CLUSTER ?= towpath
NODES ?= 3
CONFIG ?= manifests/samples/default.yaml
FROM ?=
IMAGE ?= target/image/towpath.tar

CARGO ?= cargo
TOOL = $(CARGO) run --quiet --locked --package towpath-e2e --bin towpath-cluster --

.PHONY: help demo test unit check generate image cluster-up cluster-load deploy cluster-down bench upgrade

help: ## Show this help
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Start a three-node Kubernetes, install Towpath, show traffic and a policy
	@$(TOOL) demo

test: ## Run every test, on the embedded cluster too (as root)
	@$(TOOL) prepare
	$(CARGO) test --locked --workspace

unit: ## Run the tests that need neither root nor a cluster
	@$(TOOL) unit

check: ## Check format, lints, documentation, dependencies and licences
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items
	@$(TOOL) deny

generate: ## Regenerate manifests/ from the Rust types
	$(CARGO) run --quiet --locked --package towpath-crds --bin crdgen
	$(CARGO) run --quiet --locked --package towpath-operator --bin manifestgen

image: ## Build Towpath's image as an OCI archive: target/image/towpath.tar
	@$(TOOL) image

cluster-up: ## Start a cluster without a pod network [NODES=3] [CLUSTER=towpath]
	@$(TOOL) up --name $(CLUSTER) --nodes $(NODES)

cluster-load: ## Import a docker or OCI archive into every node [IMAGE=file] [CLUSTER=towpath]
	@$(TOOL) load --name $(CLUSTER) --image $(IMAGE)

deploy: ## Install Towpath and a NetworkConfig, and wait for Ready [CLUSTER=towpath] [CONFIG=file]
	@$(TOOL) deploy --name $(CLUSTER) --config $(CONFIG)

cluster-down: ## Remove a cluster and all its processes, namespaces and files [CLUSTER=towpath]
	@$(TOOL) down --name $(CLUSTER)

bench: ## Run the benchmarks and write target/bench/report.md
	@$(CARGO) build --quiet --release --locked --package towpath-e2e --bins
	@$(CARGO) run --quiet --release --locked --package towpath-e2e --bin towpath-bench

upgrade: ## Upgrade under traffic from another checkout, where make image was run [FROM=folder]
	@$(CARGO) build --quiet --locked --package towpath-e2e --bins
	@$(CARGO) run --quiet --locked --package towpath-e2e --bin towpath-bench -- --only upgrade --from $(FROM)
