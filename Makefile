# Every target sets up what it needs. `make help` lists them.

PYTHON ?= python3.11
PIP_ARGS ?=
TEST_WORKERS ?= 2
CHECK_ARGS ?=
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCK := requirements/cpu.lock
# The last release with PPO, which benchmarks compare with; apart, as the lock has a later one.
TRL_PPO := trl==1.12.0
TRL := .venv-trl
TORCH := $(shell grep '^torch==' $(LOCK))

# PyPI's torch is a CUDA build of several GB. The CPU build's index is added, unless pip was
# already told where to look (pip.conf or PIP_* variables): then that place decides.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_ARGS = $$($(BIN)/pip config list | grep -qE 'index-url|find-links' || echo --extra-index-url $(TORCH_CPU_INDEX))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-unit test-cluster chaos check bench gpu-check lock lock-check clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  PYTHON=python3.11     the interpreter of .venv'
	@echo '  PIP_ARGS=...          further arguments of every pip install (--index-url, --proxy, ...)'
	@echo '  TORCH_CPU_INDEX=URL   where the CPU build of torch is; unused where pip.conf names a place'
	@echo '  TEST_WORKERS=2        unit tests at a time, each on one core'
	@echo '  BENCH_ARGS=...        arguments of bench (--only trl-grpo start-help, --quick)'
	@echo '  CHECK_ARGS=...        arguments of gpu-check (--only ipc nccl, --rehearse, ...)'

setup: $(STAMP) ## make .venv and install everything for a CPU machine

# --no-deps: the lock is complete, and vLLM's requirements would pull a CUDA torchvision.
$(STAMP): pyproject.toml $(LOCK)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --no-deps $(PIP_ARGS) $(TORCH_ARGS) $(TORCH)
	$(BIN)/pip install -q --no-deps $(PIP_ARGS) -r $(LOCK)
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	touch $@

demo: $(STAMP) ## train a small model by SFT, a reward model, PPO and DPO, and show that it got better
	$(BIN)/python -m launch.demo

test: test-unit test-cluster ## run every test that needs no GPU

test-unit: $(STAMP) ## those that need no cluster, TEST_WORKERS at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit -q -n $(TEST_WORKERS) --dist worksteal

test-cluster: $(STAMP) ## those on real Ray, vLLM and DeepSpeed, one at a time on one cluster
	$(BIN)/python -m pytest tests/cluster -q

chaos: $(STAMP) ## kill and stop every role of runs in every phase; three quarters of an hour
	$(BIN)/python -m pytest tests/cluster/chaos -q -m "long or not long"

check: $(STAMP) ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) $(TRL)/.installed ## measure everything that has a goal: half an hour on two quiet cores
	$(BIN)/python -m benchmarks.bench $(BENCH_ARGS)

$(TRL)/.installed:
	$(BIN)/pip install -q --no-deps --upgrade $(PIP_ARGS) --target $(TRL) $(TRL_PPO)
	touch $@

# The environment is the GPU machine's own: .venv where there is one, else whatever is active.
gpu-check: ## try every GPU path on this machine's cards, in a quarter of an hour
	$(or $(wildcard $(BIN)/python),python) -m benchmarks.gpu_check $(CHECK_ARGS)

lock: $(STAMP) ## write requirements/cpu.lock from what .venv holds now
	@{ grep '^#' $(LOCK); $(BIN)/pip freeze --all --exclude-editable --exclude pip \
		| sed 's/^\(torch==[^+]*\)+cpu$$/\1/'; } > $(LOCK).new && mv $(LOCK).new $(LOCK)

lock-check: $(STAMP) ## ask the package index whether requirements/gpu.lock holds and the gpu extra resolves
	$(BIN)/python -m requirements.check

clean: ## remove .venv, caches and build outputs; keep runs/
	rm -rf $(VENV) $(TRL) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find rlhf_ray actors launch tests -name __pycache__ -type d -prune -exec rm -rf {} +
