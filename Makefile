# Two commands matter: `make demo` and `make test`. PIP_ARGS is handed to every `pip install`.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-core packages setup setup-core lint format bench bench-peers mutation app docs hooks clean

PYTHON ?= python3
PIP_ARGS ?=
TEST_ARGS ?=
WORKERS ?= 2
ARGS ?=
PEERS := aiconfigurator-core==0.12.0 --no-deps+llm-analysis==0.2.2 fire~=0.5.0 \
  --no-deps+genz-llm==0.0.16+paretoset tqdm matplotlib seaborn ipython

BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -c constraints.txt
# Each worker is one thread: two pools of as many threads as cores wait for each other.
PYTEST := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup \
  --ignore tests/benchmarks --benchmark-disable
LOCKED := pyproject.toml constraints.txt
DEMO_GRID := hw_profiles/demo.toml
CODE := simulator hw_profiles traces kernels reports app tests docs/conf.py docs/docsite docs/howto

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv .venv

# A stamp is newer than what it was installed from, so a second run installs nothing.
.venv/.stamp-demo: $(LOCKED) | $(BIN)/python
	$(PIP_INSTALL) -e '.[reports]'
	@touch $@

.venv/.stamp-test: $(LOCKED) | $(BIN)/python
	$(PIP_INSTALL) -e '.[hub,reports,app,traces,gguf,kernels,cluster,docs,dev]'
	@touch $@ .venv/.stamp-core .venv/.stamp-demo .venv/.stamp-app .venv/.stamp-docs

.venv/.stamp-core: $(LOCKED) | $(BIN)/python
	$(PIP_INSTALL) -e '.[test]'
	@touch $@

.venv/.stamp-app: $(LOCKED) | $(BIN)/python
	$(PIP_INSTALL) -e '.[reports,app]'
	@touch $@ .venv/.stamp-demo

.venv/.stamp-docs: $(LOCKED) | $(BIN)/python
	$(PIP_INSTALL) -e '.[docs]'
	@touch $@ .venv/.stamp-demo

demo: .venv/.stamp-demo  ## the answer for four models on five GPUs, predicted against measured on this CPU, out/report.html and .pdf (no torch)
	@mkdir -p out
	$(BIN)/python -m simulator.sweep --grid $(DEMO_GRID) --out out/sweep.parquet
	$(BIN)/python -m sparse_kernels.bench --device cpu --quick --calibrate --summary --out out/cpu_kernels.csv
	$(BIN)/python -m reports.build out/sweep.parquet -o out/report.html -o out/report.pdf

setup-core: .venv/.stamp-core  ## what a new device, model or policy needs: no torch, no browser

test-core: setup-core  ## all tests that run with what is installed, and why others were skipped; TEST_ARGS as below
	$(PYTEST) $(TEST_ARGS)

setup: .venv/.stamp-test  ## everything into .venv: all extras and the developer's tools

test: setup  ## all tests, and why any were skipped; TEST_ARGS='-k name' picks some
	$(PYTEST) $(TEST_ARGS)

packages: $(BIN)/python  ## wheel and sdist, installed alone under each Python 3.11 and later found here, run from a folder of somebody else's
	$(BIN)/python tests/packaging.py --pip-args '$(PIP_ARGS)'

lint: setup  ## ruff, import rules, types, spelling
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/lint-imports --no-cache
	$(BIN)/pyright
	$(BIN)/codespell $(CODE) docs *.md

format: setup  ## let ruff mend what it can
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: setup  ## the speed contract, timed by pytest-benchmark
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only -s $(TEST_ARGS)

# The peers' own environment. --no-deps: their transformers, kaleido and notebooks are for other uses than ours.
# What cannot be installed is reported by the run, and tried again by the next one.
.venv-peers/.stamp:
	$(PYTHON) -m venv .venv-peers
	@ok=1; for what in $(PEERS); do \
	  .venv-peers/bin/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) \
	    $$(echo $$what | tr + " ") || ok=0; \
	done; [ $$ok = 0 ] || touch $@

bench-peers: setup .venv-peers/.stamp  ## speed and error beside the pip-installable peers; ARGS='--json FILE'
	$(BIN)/python tests/benchmarks/peers.py $(ARGS)

.venv/.stamp-mutation: .venv/.stamp-test
	$(PIP_INSTALL) mutmut==3.8.1
	@touch $@

mutation: .venv/.stamp-mutation  ## kill rate on a sample of mutants of the core; ARGS='--size 200 --seed 1 --jobs 4'
	$(BIN)/python tests/mutation/sample.py $(ARGS)

app: .venv/.stamp-app  ## the dashboard (no torch)
	$(BIN)/streamlit run app/main.py

docs: .venv/.stamp-docs  ## the documentation site, out/docs/index.html (no torch); a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d out/.doctrees docs out/docs

hooks: setup  ## run the linters at every commit
	$(BIN)/pre-commit install

clean:  ## remove .venv, results and caches
	rm -rf .venv .venv-peers out mutants dist build .pytest_cache .ruff_cache .hypothesis .benchmarks
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
