# Two commands for a first visit: `make demo` shows it working, `make test` proves it.
# They need Python >= 3.11 with pip, and make; everything else is installed into .venv.

PYTHON ?= python3
WORKERS ?= 2
ROUNDS ?= 300
BIN := .venv/bin
COMPOSE := docker compose -f docker-compose.test.yml --profile '*'

# Debian's Python comes without ensurepip, so pip stays outside and is pointed at the environment, which is not the
# system's: that the system's own Python is marked as externally managed does not matter here.
INSTALL := $(PYTHON) -m pip --python $(BIN)/python --disable-pip-version-check install --quiet -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help dev demo test check fidelity soak bench up down clean

help: ## what can be made
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile | expand -t 14

# The stamps are older than these two files when something has to be installed again. Connectors are found by entry
# points, which are read when Kadds is installed.
$(BIN)/python:
	$(PYTHON) -m venv --without-pip .venv

.venv/installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Kadds into .venv"
	@$(INSTALL) --editable '.[polling]'
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Kadds, its tests and its tools into .venv"
	@$(INSTALL) --editable '.[dev]'
	@touch .venv/installed $@

dev: .venv/installed-dev ## make .venv with Kadds, its tests and its tools
	@echo "Ready: . .venv/bin/activate"

demo: .venv/installed ## see changes move from a small shop into DuckDB and Parquet
	$(BIN)/kadds demo

test: .venv/installed-dev ## install what the tests need (database servers too) and run them all
	@servers="$$(tests/support/install_servers.sh)" && eval "$$servers" && \
		$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope

check: .venv/installed-dev ## style, types and the rules of the house: under a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/house

fidelity: .venv/installed-dev ## every type of PostgreSQL with its edge values into every sink, as a table
	@servers="$$(tests/support/install_servers.sh)" && eval "$$servers" && $(BIN)/python -m tests.fidelity

soak: .venv/installed-dev ## kill -9 under load, ROUNDS times
	@servers="$$(tests/support/install_servers.sh)" && eval "$$servers" && KADDS_SOAK_ROUNDS=$(ROUNDS) \
		$(BIN)/python -m pytest -o faulthandler_timeout=0 -s \
		tests/acceptance/test_kill.py tests/acceptance/test_postgres_kill.py

bench: .venv/installed-dev ## the benchmarks: one JSON object a line, beside a peer
	@for file in benchmarks/*.py; do $(BIN)/python "$$file" || exit 1; done

up: ## start the test servers in docker
	$(COMPOSE) up --detach --wait

down: ## stop them and forget their data
	$(COMPOSE) down --volumes

clean: ## remove the environment and all that tools leave behind
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
