# make demo    the example application, on http://127.0.0.1:5000
# make test    the whole test suite, by WORKERS=2; PYTEST_ARGS="-k flow -x" is handed on
# make check   linters, type-checkers, documentation and package
# make bench   what a request pays for its session; BENCH_ARGS="--quick" is handed on
# make docs    the documentation, into docs/_build/html
# make clean   removes all that the above have made
#
# All need Python with its venv module, and nothing else: what they install goes
# into .venv. PYTHON=python3.12 chooses another Python, after "make clean".

PYTHON ?= python3
PYTEST_ARGS ?=
WORKERS ?= 2
BENCH_ARGS ?=
PORT ?= 5000

VENV := .venv
BIN := $(VENV)/bin
SPHINX := $(BIN)/sphinx-build -E -W -n docs docs/_build/html

.DEFAULT_GOAL := help
.PHONY: help demo test check bench docs clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# make /make /p' Makefile

demo: $(VENV)/.demo
	$(BIN)/python -m flask --app example_app run --port $(PORT)

test: $(VENV)/.tests
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(PYTEST_ARGS)

check: $(VENV)/.checks
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(SPHINX)
	rm -rf dist $(VENV)/wheel
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv $(VENV)/wheel
	$(VENV)/wheel/bin/python -m pip install --quiet dist/*.whl
	$(VENV)/wheel/bin/python -I -c "import flask_serversession"
	rm -rf $(VENV)/wheel

bench: $(VENV)/.bench
	$(BIN)/python -m tests.benchmarks $(BENCH_ARGS)

docs: $(VENV)/.checks
	$(SPHINX)

clean:
	rm -rf $(VENV) dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment; a stamp for each set of packages in it, renewed with pyproject.toml.

$(VENV)/.created:
	@$(PYTHON) -c "import ensurepip, venv" 2> /dev/null || { \
	    echo >&2 "$(PYTHON) cannot create virtual environments."; \
	    echo >&2 "On Debian and Ubuntu: apt-get install python3-venv"; \
	    exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

$(VENV)/.demo: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[all,example]"
	@touch $@

$(VENV)/.tests: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[all,example]" --group tests
	@touch $@

$(VENV)/.bench: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[all]" --group bench
	@touch $@

$(VENV)/.checks: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[all,example]" --group checks
	@touch $@
