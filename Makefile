# `make up` starts a whole network on this machine; `make test` tests everything, from nothing. Both say what is missing.

export POLYLINK_CACHE ?= $(HOME)/.cache/polylink
export CARGO_TARGET_DIR ?= $(POLYLINK_CACHE)/target
POLYLINK := $(CARGO_TARGET_DIR)/debug/polylink
# Where `make up` keeps its network; `make clean-net` forgets it.
export POLYLINK_HOME ?= $(CURDIR)/.polylink
UP_FLAGS ?=

.PHONY: help up build cuda gpu-bundle cometbft toolchain test soak lint clean-net

help:
	@echo "make up         build all, start a network here, ask it one question (UP_FLAGS=… for 'polylink up')"
	@echo "make test       every test there is, from nothing; needs python3 and npm besides cargo and go"
	@echo "make cuda       polylink with the CUDA backend, stripped, in target/gpu/bin; needs no GPU"
	@echo "make gpu-bundle that, and the kernels' tests, to carry to a machine with a GPU (bench/gpu.sh)"
	@echo "make soak       an hour of more than the engine can take (SOAK_SECONDS=…)"
	@echo "make lint       formatting and clippy"
	@echo "make clean-net  stop the network of 'make up' and forget its state"

toolchain:
	@./tests/toolchain.sh cargo go

cometbft: toolchain
	@./cometbft-config/build.sh

build: toolchain
	@echo "building polylink (the first time takes several minutes; later ones seconds)"
	@cargo build --locked -p polylink

cuda:
	@./tests/toolchain.sh cargo
	@./kernels/cuda/bundle.sh polylink

gpu-bundle:
	@./tests/toolchain.sh cargo
	@./kernels/cuda/bundle.sh

up: build cometbft
	@exec $(POLYLINK) up $(UP_FLAGS)

test:
	@./tests/toolchain.sh cargo go python3 npm
	@./tests/run.sh

soak: build
	@./tests/soak.sh

lint: toolchain
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

clean-net:
	@if [ -x $(POLYLINK) ]; then $(POLYLINK) down; fi
	@rm -rf -- "$(POLYLINK_HOME)"
	@echo "forgot $(POLYLINK_HOME)"
