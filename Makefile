# Every target sets itself up from nothing: Python 3.11 or later, make and git are all it takes.
PYTHON ?= python3
BIN := .venv/bin
# The published file is opened with these too (tests/test_readers.py); wheels go beside the environment, not into it.
READERS := 1.2.2 1.3.2 1.4.4 2.0.0
# So do these. They are not in the environment, for where there is a pandas PyArrow imports it: 60 MB and half a second.
TOOLS := duckdb-sqlalchemy==1.5.6.5 numpy==2.4.6 pandas==3.1.1 polars==2.1.0 polars-runtime-32==2.1.0
# So does SQLAlchemy's older dialect, which Superset has, with the last SQLAlchemy that it works with and with Superset's.
SQLALCHEMYS := 1.4.54 2.0.44
# Superset 6.1.0 does not say that it needs rich and cachetools, nor that a newer Flask-Caching breaks it.
SUPERSET := apache-superset==6.1.0 'flask-caching<2.4' rich cachetools duckdb-engine==0.17.0 duckdb==2.0.1
WORKERS ?= 2

.PHONY: help install demo up test test-nights torture superset bench growth test-duckdb2 test-browser check format dictionary lock clean
help: ## what the targets do
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

.venv/installed: requirements.txt pyproject.toml hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=python3.12 …"; exit 1; }
	@test -x $(BIN)/python || { echo "Making .venv …"; $(PYTHON) -m venv .venv; }
	@echo "Installing the locked dependencies …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv/duckdb-%/installed: | .venv/installed
	@echo "Installing DuckDB $* to read with …"
	@rm -rf .venv/duckdb-$*
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/duckdb-$* duckdb==$*
	@touch $@

.venv/duckdb-engine-%/installed: | .venv/installed
	@echo "Installing duckdb-engine with SQLAlchemy $* to read with …"
	@rm -rf .venv/duckdb-engine-$*
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/duckdb-engine-$* duckdb-engine==0.17.0 sqlalchemy==$*
	@touch $@

.venv/tools/installed: | .venv/installed
	@echo "Installing pandas, Polars and SQLAlchemy's dialect to read with …"
	@rm -rf .venv/tools
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/tools $(TOOLS)
	@touch $@

# Made when the package is installed; by itself where somebody deleted it.
contio_pipeline/dashboard/charts.js: | .venv/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .

install: .venv/installed contio_pipeline/dashboard/charts.js ## make .venv with the locked dependencies and the contio-pipeline command
	@$(BIN)/python -m compileall -q contio_pipeline dagster_project # once, also where Python is told to keep no bytecode

demo: install ## sync a year of meetings from a sandbox API into data/demo, by Dagster
	@$(BIN)/contio-pipeline demo

up: install ## Dagster's UI and daemon on data/, until Ctrl-C (ARGS="--port 3001")
	@exec $(BIN)/python -m dagster_project $(ARGS)

READING := $(READERS:%=.venv/duckdb-%/installed) $(SQLALCHEMYS:%=.venv/duckdb-engine-%/installed) .venv/tools/installed
test: install $(READING) ## run the tests
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not browser and not slow" $(ARGS)

test-browser: install ## run the tests that need Chromium (Debian: apt-get install chromium)
	@$(BIN)/python -m pytest -m browser $(ARGS)

test-nights: install .venv/tools/installed ## run what takes minutes: real nights of UI, daemon and schedules; readers through 200 publications
	@$(BIN)/python -m pytest -m slow $(ARGS)

torture: install ## kill -9 syncs, publishes and refreshes at random instants, 200 times (ARGS="--kills 1000")
	@PYTHONPATH=tests $(BIN)/python tests/torture.py $(ARGS)

.venv/superset/installed: | .venv/installed
	@echo "Installing Superset …"
	@rm -rf .venv/superset && $(BIN)/python -m venv .venv/superset
	@.venv/superset/bin/python -m pip install --quiet --disable-pip-version-check $(SUPERSET)
	@touch $@

superset: install .venv/superset/installed ## read what is published by a real Superset (Python 3.11; ARGS="--publications 10")
	@PYTHONPATH=tests $(BIN)/python tests/superset.py $(ARGS)

bench: install ## what each kind of run costs, against a bare fetch of the same pages (ARGS="--meetings 100000 --rate 1000/3 --profile")
	@PYTHONPATH=tests $(BIN)/python tests/bench.py $(ARGS)

growth: install ## what grows over many nights: files, memory, time (ARGS="--meetings 1000000 --action-items 2000000 --nights 1000")
	@PYTHONPATH=tests $(BIN)/python tests/growth.py $(ARGS)

test-duckdb2: install $(READERS:%=.venv/duckdb-%/installed) ## run the storage tests and whole syncs on DuckDB 2.0
	@PYTHONPATH=.venv/duckdb-2.0.0 $(BIN)/python -m pytest -n $(WORKERS) \
	  tests/test_warehouse.py tests/test_publish.py tests/test_forget.py tests/test_backup.py tests/test_marts.py tests/test_privacy.py \
	  $(addprefix tests/test_sync.py::test_,a_full_sync_makes_everything_equal_to_the_api the_history_tells_every_change \
	  after_the_world_changed_everything_is_equal_again running_again_changes_nothing_downloads_nothing_and_makes_no_generation) $(ARGS)

check: install ## lint, format, types, import layers, dependency hygiene
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/deptry contio_pipeline dagster_project

format: install ## format the code and mend what the linter can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

dictionary: install ## write docs/data-dictionary.md anew
	@$(BIN)/python -c 'from contio_pipeline.dictionary import dictionary; print(dictionary(), end="")' > docs/data-dictionary.md

lock: install ## compile requirements.txt anew from pyproject.toml
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --upgrade \
	  --generate-hashes --no-emit-index-url --no-strip-extras --no-annotate --no-header --quiet -o requirements.txt

clean: ## remove what the targets made (data/ stays)
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
