# Two commands are enough: `make run` starts Corral, `make test` checks everything.
# Both make their own virtual environment in .venv first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Test processes side by side: three keep two cores busy, since tests wait now and then, and leave those that look at
# the time enough of them.
JOBS ?= 3
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: run test lint types imports check lock docs standalone clean
.DEFAULT_GOAL := run

$(VENV)/.installed: pyproject.toml requirements.lock requirements-engine.lock src/corral/__init__.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Corral needs Python 3.11 or newer; $$($(PYTHON) --version) was found. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "python -m venv failed: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	@echo "installing Corral into $(VENV) (once; a minute or two)"
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m pip install --quiet --require-hashes --only-binary :all: -r requirements-engine.lock || echo "the engine xllamacpp cannot be installed here: real-model tests will be skipped"
	@touch $@

run: $(VENV)/.installed
	@exec $(BIN)/corral up

# Tests that measure against the clock run when the others are done; both parts run, whatever becomes of the first.
test: lint types imports
	@failed=0; \
	$(BIN)/python -m pytest -m "not alone" -n $(JOBS) --no-loadscope-reorder --max-worker-restart 0 || failed=1; \
	$(BIN)/python -m pytest -m alone || failed=1; \
	exit $$failed

check: lint types imports

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy
	$(BIN)/mypy tests bench examples

imports: $(VENV)/.installed
	$(BIN)/lint-imports --no-logo

COMPILE = CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --strip-extras --allow-unsafe --generate-hashes --no-emit-index-url --no-emit-trusted-host --no-emit-find-links
ENGINE = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["engine"], sep="\n")

REQUIRES = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")

# The engine has a lock of its own: where it has no wheel, everything else must still install.
lock: pyproject.toml
	$(BIN)/python -m pip install --quiet pip-tools
	$(COMPILE) --extra dev --extra discovery --extra otel --extra top -o requirements.lock pyproject.toml
	$(BIN)/python -c '$(ENGINE)' | $(COMPILE) --constraint requirements.lock -o requirements-engine.lock -
	$(COMPILE) --constraint requirements.lock --extra discovery --extra otel --extra top -o deploy/docker/requirements.lock pyproject.toml
	$(BIN)/python -c '$(REQUIRES)' | $(COMPILE) --constraint requirements.lock -o deploy/docker/build.lock -
	printf 'setuptools>=77\nshiv>=1.0.8,<2\n' | $(COMPILE) --constraint requirements.lock -o deploy/standalone/build.lock -

# One file that runs without being installed, for the Python that makes it.
standalone: $(VENV)/.installed
	deploy/standalone/build.sh

# What is written from the code, and tested to be fresh.
docs: $(VENV)/.installed
	$(BIN)/corral man --write docs/man
	$(BIN)/corral config schema > docs/corral.schema.json
	$(BIN)/python deploy/grafana/build.py
	UPDATE_GOLDEN=1 $(BIN)/python -m pytest -q tests/gateway/serve/test_metrics.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
