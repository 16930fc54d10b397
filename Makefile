# Everything a person or CI does here, from a bare clone with Python >= 3.11, pip and make.
# PYTHON picks the interpreter that makes the environment: make test PYTHON=python3.12

PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 2
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check
# On few cores the thread pools of NumPy and torch get in each other's way: one thread per process is faster,
# and two test processes use two cores.
ONE     := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help venv demo test lint types unit coverage fuzz bench-once docs bench compare compare-peers papers format constraints clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---------------------------------------------------------------- environment
# bin/pip is written last when an environment is made: one that was interrupted is made anew.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "tnc needs Python >= 3.11, but $(PYTHON) is older or missing; try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

# One stamp per set of extras; both are renewed when what they were made from changes.
# The build backend goes in first, so that it is pinned too (no isolated build environment).
$(VENV)/.demo: EXTRAS := torch,plot
$(VENV)/.dev:  EXTRAS := dev
$(VENV)/.demo $(VENV)/.dev: pyproject.toml constraints.txt $(BIN)/pip
	@echo "installing .[$(EXTRAS)] into $(VENV), as constraints.txt pins it (a minute or two)"
	$(PIP) install -qq --constraint constraints.txt hatchling editables
	$(PIP) install -qq --constraint constraints.txt --no-build-isolation --editable '.[$(EXTRAS)]'
	@touch $@

venv: $(VENV)/.dev ## make .venv with everything for development, as pinned in constraints.txt

# ----------------------------------------------------------------------- work
demo: $(VENV)/.demo ## train LeNet-5 on MNIST, compress it with every decomposition, print the table
	$(BIN)/tnc demo

test: lint types unit bench-once docs ## all that CI checks: lint, types, contracts, tests, benchmarks once, docs

lint: $(VENV)/.dev ## formatting, ruff and the import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(VENV)/.dev ## mypy
	$(BIN)/mypy

unit: $(VENV)/.dev ## the tests alone
	$(ONE) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --benchmark-disable

coverage: $(VENV)/.dev ## branches that the tests take, by file (three times as slow as the tests alone)
	$(ONE) $(BIN)/python -m pytest -q -n $(WORKERS) --benchmark-disable --cov --cov-report=term:skip-covered

# FUZZ is how many times as many cases as in the tests: make fuzz FUZZ=1000. One section: make fuzz SECTION=texts
FUZZ ?= 100
fuzz: $(VENV)/.dev ## damaged and hostile files, texts, kills: some minutes; writes docs/reliability.md
	$(ONE) TNC_FUZZ=$(FUZZ) $(BIN)/python -m tests.fuzz $(SECTION)

bench-once: $(VENV)/.dev
	$(ONE) $(BIN)/python -m pytest -q benchmarks/test_fit.py --benchmark-disable
	$(ONE) $(BIN)/python -m pytest -q -c benchmarks/compare/cells/pytest.ini --rootdir=. --import-mode=importlib \
	  benchmarks/compare/cells --benchmark-disable

docs: $(VENV)/.dev ## build docs/_build/html; every example in them is run
	$(ONE) $(BIN)/sphinx-build -n -W --keep-going -q -b html docs docs/_build/html

# CELLS picks a part of the grid, PART names its file: make bench CELLS='conv512 and tucker' PART=-conv512
# The report takes all parts; a cell measured again replaces the first.
CELLS ?= not slow
bench: $(VENV)/.dev ## time layers and networks against dense ones and other libraries; writes docs/benchmarks
	$(BIN)/python -m pytest benchmarks/test_fit.py -q --benchmark-only --benchmark-columns=min,median,rounds
	$(BIN)/python -m pytest benchmarks/test_layers.py -q --benchmark-only --benchmark-quiet \
	  -k '$(CELLS)' --benchmark-json=benchmarks/results/layers$(PART).json
	$(BIN)/python -m benchmarks.networks_bench
	$(BIN)/python -m benchmarks.report benchmarks/results/layers*.json

# BASE is any commit: make compare BASE=main. ARGS adds options: make compare ARGS='--short --json ratios.json'
compare: $(VENV)/.dev ## time this tree and commit BASE in turn, and refuse what became slower
	$(BIN)/python -m benchmarks.compare $(if $(BASE),--base '$(BASE)') $(ARGS)

compare-peers: $(VENV)/.dev ## the same for our fits and layers beside TensorLy's, a short look
	$(ONE) $(BIN)/python -m benchmarks.compare.peers $(ARGS)

# ARGS picks rows and says when to stop: make papers ARGS='--net "vgg*" --budget 60'
papers: $(VENV)/.dev ## go on with the papers' queue (days in all; stop it as you like); writes docs/papers
	$(ONE) $(BIN)/python -m benchmarks.papers $(ARGS)

format: $(VENV)/.dev ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

constraints: ## pin the newest compatible versions anew (torch stays where this line says)
	$(PYTHON) -m venv --clear $(VENV)-fresh
	$(VENV)-fresh/bin/pip install --quiet hatchling editables 'torch==2.13.0' 'soupsieve<3' '.[dev]'
	{ sed -n '/^#/p; /^cupy/p' constraints.txt; \
	  $(VENV)-fresh/bin/pip freeze --exclude tncompress | sed 's/+cpu//; s/+cu[0-9]*//'; } > constraints.new
	mv constraints.new constraints.txt
	rm -rf $(VENV)-fresh

clean: ## remove the environment and everything built
	rm -rf $(VENV) docs/_build build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
