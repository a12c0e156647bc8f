# Tacit: everything here sets up what it needs in .venv
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help setup demo test lint bench fuzz soak faults wheelhouse clean
help:            ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## the environment, in .venv
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tacit needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	@echo "Setting up $(VENV) (once; a few minutes when packages have to be downloaded) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[simulation,dev]'
	@touch $@

demo: $(STAMP)   ## private federated training over ten clinics, with a report
	@$(BIN)/tacit simulate simulations/scenarios/breast_cancer.toml --out build/demo

test: $(STAMP)   ## style, types and tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow" -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)   ## style and types only
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy

faults: $(STAMP) ## plant each seeded fault; the test named with it must go red
	$(BIN)/python -m tests.faults

bench: $(STAMP)  ## ratios against references in the same run; ONLY=group for some
	@$(BIN)/python -m tests.bench $(if $(ONLY),--only $(ONLY))

fuzz: $(STAMP)   ## coverage-guided fuzzing, each target for SECONDS=60; ONLY=H4 for one
	@$(BIN)/python -m tests.fuzz $(ONLY) --seconds $(or $(SECONDS),60)

soak: $(STAMP)   ## the long tests; MINUTES=30 of fuzzing among them
	TACIT_SOAK_MINUTES=$(or $(MINUTES),30) $(BIN)/python -m pytest -m slow --timeout 0

wheelhouse: $(STAMP)  ## all wheels of a node for machines without network, in build/wheelhouse
	@$(BIN)/python deploy/wheelhouse.py build/wheelhouse $(WHEELHOUSE)

clean:           ## everything but .venv
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
