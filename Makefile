# `make demo` and `make test` do all the set-up on a fresh machine; CONTRIBUTING.md has the table.

PYTHON ?= python3
WORKERS ?= 2
# Extra arguments of pytest: make test ARGS="-k replay -x"
ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python -m
PIP := $(RUN) pip --disable-pip-version-check install --constraint constraints.txt
# One thread per process: the tests fill the cores with worker processes instead.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
BENCHMARKS := $(filter-out benchmarks/figures.py benchmarks/tiny_models.py,$(wildcard benchmarks/*.py))

.PHONY: demo test check format lint types bench clean
.NOTPARALLEL:

demo: $(VENV)/runs
	$(VENV)/bin/numgeom certify example:digits-mlp

test: $(VENV)/checks
	$(ONE_THREAD) $(RUN) pytest --numprocesses $(WORKERS) --dist worksteal --durations 10 $(ARGS)

check: lint types test

format: $(VENV)/checks
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

lint: $(VENV)/checks
	$(RUN) ruff format --check .
	$(RUN) ruff check .

types: $(VENV)/checks
	$(RUN) pyright --pythonpath $(VENV)/bin/python

bench: $(VENV)/checks
	set -e; for script in $(BENCHMARKS); do echo "$$script"; $(VENV)/bin/python $$script; done

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Two steps, so that a first look needs no development tools.
$(VENV)/checks: $(VENV)/runs
	$(PIP) --no-build-isolation --editable '.[dev]'
	touch $@

# torch comes first and alone: a later step that is free to choose its version may pull in another
# build, with gigabytes of libraries for GPUs. The build backend comes from constraints.txt too.
$(VENV)/runs: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) hatchling editables
	$(PIP) --no-build-isolation --editable '.[examples]'
	touch $@
