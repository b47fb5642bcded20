# Everything here needs Python 3.11 or newer and make; the first call makes a virtual environment of its own.
#   make demo     see it work            make check    all that must hold before a change lands
#   make test     the tests              make bench    the benchmark tables
#   make docs     the pages of docs/ as a site
# PYTHON=python3.13 picks the interpreter, VENV=folder the environment, TESTFLAGS and BENCHFLAGS are handed on.
# Tests run in one process more than there are cores, as many of them wait; four at most. WORKERS=0 keeps them in one.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))')
TESTFLAGS ?=
BENCHFLAGS ?=

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
SLOW_ROOMS = model stress peer chaos commands operations integrations replica_clients
FAST = $(SLOW_ROOMS:%=--ignore=tests/%) -m 'not chaos and not soak and not servers and not s3 and not slow'
BENCHMARKS = $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py))
TYPED_TOOLS = tests/conftest.py tests/plan_plugin.py tests/leak_check.py

.PHONY: help demo test test-fast check format lint types imports bench docs clean
.DELETE_ON_ERROR:

help:
	@sed -n '2,6s/^# *//p' Makefile

demo: $(VENV)/installed
	$(BIN)/litevfs demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(TESTFLAGS)

# What answers in under a minute: how a replica is read, written and compacted, without random courses, stress, servers
# and processes.
test-fast: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(FAST) $(TESTFLAGS)

check: lint types imports test

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/installed-dev
	$(BIN)/mypy
	$(BIN)/mypy $(TYPED_TOOLS)

imports: $(VENV)/installed-dev
	$(BIN)/lint-imports --no-logo

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/installed-dev
	@set -e; for script in $(BENCHMARKS); do echo "== $$script $(BENCHFLAGS)"; $(BIN)/python $$script $(BENCHFLAGS); done

# The pages of docs/, as a site in site/; a link that leads nowhere is an error.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf site .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

# pip is the last thing that a new environment gets.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo >&2 "litevfs needs Python 3.11 or newer, and '$(PYTHON)' is not: try make PYTHON=python3.13"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo >&2 "'$(PYTHON)' comes without the modules venv and ensurepip; on Debian and Ubuntu: apt install python3-venv"; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)

# The package is installed in place, so only what it depends on asks for a new installation.
$(VENV)/installed: pyproject.toml | $(BIN)/pip
	$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/installed-docs: pyproject.toml | $(BIN)/pip
	$(PIP) install --quiet --editable '.[docs]'
	@touch $(VENV)/installed $@

# Litestream's own VFS, the peer, has no wheel for some platforms; its tests are skipped there.
$(VENV)/installed-dev: pyproject.toml | $(BIN)/pip
	$(PIP) install --quiet --editable '.[dev]'
	@$(PIP) install --quiet --editable '.[peer]' || \
	  echo >&2 "litestream-vfs could not be installed: comparisons with Litestream's VFS are skipped"
	@touch $(VENV)/installed $@
