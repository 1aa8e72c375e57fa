# Every target makes .venv and installs into it what is missing: a machine needs Python and make.
# img2dataset, whose shards the tests read, has an environment of its own.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo test lint bench soak clean
.DELETE_ON_ERROR:

VENV := .venv
PYTHON := $(VENV)/bin/python
# Holds the folder that was installed: a clone that has been moved is installed anew.
STAMP := $(VENV)/.penstock
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(shell rm -f $(STAMP))
endif
# It needs older packages than penstock. The stamp is a copy of what was installed: the tests look.
IMG2DATASET := .venv-img2dataset
IMG2DATASET_PINS := tests/pipes/img2dataset/requirements.txt
IMG2DATASET_STAMP := $(IMG2DATASET)/requirements.txt
ifneq ($(shell cmp -s $(IMG2DATASET_PINS) $(IMG2DATASET_STAMP) && echo same),same)
$(shell rm -f $(IMG2DATASET_STAMP))
endif
JOBS ?= 4
OUT ?= demo

help:
	@echo "make demo    shards, a run that is killed and resumed, a contact sheet: about two minutes"
	@echo "make test    the tests, with coverage (JOBS=4: at most so many processes)"
	@echo "make lint    ruff and mypy"
	@echo "make bench   the benchmarks"
	@echo "make soak    hours of killing and resuming"
	@echo "make clean   remove what the others made, but for .venv and $(IMG2DATASET)"

demo: $(STAMP)
	$(PYTHON) -m penstock.recipes.demo --out "$(OUT)"

test: $(STAMP) $(IMG2DATASET_STAMP)
	$(PYTHON) -m pytest -n logical --maxprocesses $(JOBS) --dist worksteal -m "not soak and not gpu" \
		--cov --cov-report term:skip-covered

lint: $(STAMP)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

bench: $(STAMP)
	@set -e; for file in $$(grep -l __main__ benchmarks/*.py) benchmarks/parity/run.py \
		benchmarks/parity/dalle/run.py; do \
		echo "$$file"; $(PYTHON) "$$file"; \
	done

soak: $(STAMP)
	$(PYTHON) -m pytest -m soak

clean:
	rm -rf demo out dist .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -path ./$(IMG2DATASET) -prune -o -path ./.git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# What was installed is out of date when pyproject.toml is newer; an attempt that was interrupted
# leaves no stamp.
$(STAMP): pyproject.toml
	@if ! $(PYTHON) -c '' 2>/dev/null; then \
		found=; \
		for name in python3.14 python3.13 python3.12 python3.11 python3; do \
			if $$name -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
				2>/dev/null; then found=$$name; break; fi; \
		done; \
		if test -z "$$found"; then \
			echo "penstock needs Python 3.11 or newer with its venv module (on Debian and Ubuntu:" >&2; \
			echo "apt install python3-venv). Found: $$(python3 --version 2>&1 || true)" >&2; \
			exit 1; \
		fi; \
		echo "$$found -m venv --clear $(VENV)"; \
		$$found -m venv --clear $(VENV); \
	fi
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m ensurepip
	$(PYTHON) -m pip install --disable-pip-version-check -e '.[dev]'
	@printf '%s\n' "$(CURDIR)" > $@

$(IMG2DATASET_STAMP): | $(STAMP)
	$(PYTHON) -m venv --clear $(IMG2DATASET)
	$(IMG2DATASET)/bin/python -m pip install --disable-pip-version-check -r $(IMG2DATASET_PINS)
	@cp $(IMG2DATASET_PINS) $@
