# What a user types: `make serve`, `make test`. Both set up everything they need, in .venv, from hash-locked requirements.
.DEFAULT_GOAL := help
.PHONY: help launcher serve lint fast test check bench lock clean
SHELL := /bin/sh
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TESTS ?=
# Exit code 5: none of the chosen tests is of this kind.
PYTEST = { $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not held" $(TESTS) || test $$? -eq 5; } && { $(BIN)/python -m pytest -m held $(TESTS) || test $$? -eq 5; }
JOBS ?= auto

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1|/p' Makefile | awk -F'|' '{printf "  make %-8s %s\n", $$1, $$2}'

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "cliproxy needs Python 3.11 or newer; install it, or say: make PYTHON=/path/to/python3" >&2; exit 78; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "could not make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 78; }

$(VENV)/runtime.stamp: requirements/runtime.txt requirements/build.txt pyproject.toml | $(BIN)/python
	@echo "installing the locked dependencies into $(VENV) (once) ..."
	@$(PIP) install --require-hashes -r requirements/build.txt
	@$(PIP) install --require-hashes -r requirements/runtime.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@$(PIP) uninstall --yes setuptools
	@$(MAKE) --no-print-directory launcher
	@touch $@

# In place of the one that pip writes: isolated (-I) before Python reads PYTHONPATH or imports anything.
launcher:
	@printf '#!/bin/sh\nexec "%s" -I -m cliproxy.cli.main "$$@"\n' '$(abspath $(BIN))/python' > '$(BIN)/cliproxy'
	@chmod 755 '$(BIN)/cliproxy'

$(VENV)/dev.stamp: requirements/dev.txt $(VENV)/runtime.stamp
	@echo "installing the locked development tools into $(VENV) (once) ..."
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@

# The gateway's processes write no bytecode themselves: without it each of them compiles its modules anew, slower and with a megabyte more.
serve: $(VENV)/runtime.stamp ## set up once, then run the gateway on http://127.0.0.1:8317
	@$(BIN)/python -m compileall -q src/cliproxy
	@$(BIN)/cliproxy init --if-missing && exec $(BIN)/cliproxy serve

test: $(VENV)/dev.stamp ## set up once, then run every test
	@$(PYTEST)

lint: $(VENV)/dev.stamp ## formatting, lint, types, import contracts: seconds
	@$(BIN)/ruff format --check --quiet src tests bench
	@$(BIN)/ruff check --quiet src tests bench
	@$(BIN)/mypy
	@$(BIN)/lint-imports

fast: $(VENV)/dev.stamp ## the tests that start no gateway: less than two minutes
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not held and not gateway" $(TESTS)

check: lint test ## lint and every test: what decides whether a change lands

bench: $(VENV)/dev.stamp ## measure this gateway beside bare nginx (where installed); prints a table
	@$(BIN)/python -m compileall -q src/cliproxy
	@$(BIN)/python -m bench

lock: $(BIN)/python ## resolve the requirements anew and write their hashes
	@$(PIP) install uv
	@cd requirements && for f in build runtime dev; do ../$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-header --no-annotate $$f.in -o $$f.txt; done

clean: ## remove what the other targets made
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
