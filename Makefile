# `make` lists the targets. Nothing but Python (3.11 or newer) and make is needed.
PYTHON ?= python3
VENV ?= .venv
# An index of CPU-only torch wheels, such as https://download.pytorch.org/whl/cpu; empty: pip's default.
TORCH_INDEX ?=
# Passed on to `ringspan demo`, `tox` and `benchmarks/gpu.py`.
DEMO_ARGS ?=
TOX_ARGS ?=
GPU_ARGS ?=

# The distributions depend on each other and are not published: one pip command installs them all.
DISTRIBUTIONS = ./registry './core[cli,plot]' $(wildcard ./plugins/*/*) .

SOURCES := $(shell find registry core plugins -path '*/src/*' -type f -not -name '*.pyc') \
    pyproject.toml $(wildcard registry/pyproject.toml core/pyproject.toml plugins/*/*/pyproject.toml)
BOOTSTRAP = .tox/bootstrap
TOX = $(BOOTSTRAP)/bin/tox

# Does this Python have a torch that is new enough to keep? (A virtual environment cannot lend its own.)
HAS_TORCH = $(1) -c 'from importlib.metadata import version as v; import sys; \
    sys.exit(tuple(map(int, v("torch").split(".")[:2])) < (2, 11) or $(2))' 2>/dev/null && echo yes
TORCH_TO_LEND = $(shell $(call HAS_TORCH,$(PYTHON),sys.prefix != sys.base_prefix))
TORCH_TO_KEEP = $(shell $(call HAS_TORCH,$(VENV)/bin/python,False))
TORCH_OPTIONS = $(if $(TORCH_TO_KEEP),,--constraint constraints.txt $(addprefix --extra-index-url ,$(TORCH_INDEX)))

.DEFAULT_GOAL := help
.PHONY: help install dev demo test lint types format reference ordering wheels gpu bench soak clean

help: ## List the targets.
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 10

$(VENV)/bin/python:
	$(PYTHON) -m venv $(if $(TORCH_TO_LEND),--system-site-packages) $(VENV)

$(VENV)/.installed: $(SOURCES) | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install $(TORCH_OPTIONS) $(DISTRIBUTIONS)
	@touch $@

install: $(VENV)/.installed ## Install everything into .venv, keeping a torch that is already there.

demo: $(VENV)/.installed ## Train on real text, check the loss on a ring of two, write report.html.
	$(VENV)/bin/ringspan demo $(DEMO_ARGS)

dev: | $(VENV)/bin/python ## Install everything editable into .venv, with the tools.
	$(VENV)/bin/python -m pip install --upgrade 'pip>=25.1'
	$(VENV)/bin/python -m pip install $(TORCH_OPTIONS) --group dev $(addprefix --editable ,$(DISTRIBUTIONS))

$(TOX):
	$(PYTHON) -m venv $(BOOTSTRAP)
	$(BOOTSTRAP)/bin/python -m pip install --quiet 'tox>=4.23'

test: $(TOX) ## Run every check (TOX_ARGS='-e shared,manual' for some).
	@rm -rf .tox/reports
	@$(if $(TORCH_INDEX),PIP_EXTRA_INDEX_URL=$(TORCH_INDEX)) $(TOX) run $(TOX_ARGS); \
	    $(PYTHON) tests/summary.py .tox/reports --tox-status $$?

lint: $(TOX) ## Check style and floors.
	$(TOX) run -e lint,imports

types: $(TOX) ## Check types.
	$(TOX) run -e shared,types

format: $(TOX) ## Fix what ruff can fix.
	$(TOX) run -e format

reference: | $(VENV)/bin/python ## Write docs/reference/patterns.md and backends.md anew (after `make dev`).
	$(VENV)/bin/python -m tests.reference.page
	$(VENV)/bin/python -m benchmarks.matrix

ordering: | $(VENV)/bin/python ## Measure what orderings bring, and write docs/guides/ordering.md (after `make dev`).
	$(VENV)/bin/python -m benchmarks.ordering

wheels: ## Build every wheel into wheels/.
	$(PYTHON) -m pip wheel --no-deps --wheel-dir wheels $(DISTRIBUTIONS)

gpu: ## Run conformance, accuracy, steps, rings and figures on this machine's GPU, offline.
	$(PYTHON) benchmarks/gpu.py $(GPU_ARGS)

bench: $(VENV)/.installed ## Measure the overhead above bare kernels, and the figures of kernels.
	$(VENV)/bin/python benchmarks/overhead.py
	$(VENV)/bin/python benchmarks/kernels.py

soak: $(VENV)/.installed ## Kill ranks of real rings 20 times, and restart them 3 times.
	$(VENV)/bin/python -m benchmarks.soak --kills 20 --restarts 3

clean: ## Remove what the targets above made, .venv included.
	rm -rf $(VENV) .tox wheels dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
