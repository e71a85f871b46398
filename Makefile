# make demo    the example application, on http://127.0.0.1:5000
# make demo-https  the same on https://127.0.0.1:5000, with sessions bound to devices
# make test    the whole test suite, by WORKERS=2; PYTEST_ARGS="-k flow -x" is handed on
# make check   linters, type-checkers, documentation and package
# make bench   what a request pays for its session; BENCH_ARGS="--quick" is handed on
# make docs    the documentation, into docs/_build/html
# make clean   removes all that the above have made
#
# make test-pythons      the tests that are not slow, on every Python on the path
# make test-lowest       the same, with the oldest versions that pyproject.toml allows
# make test-flask-main   the same, with Flask from SOURCE=path, a checkout of its main
# make test-extras       the wheel in an environment with each extra alone
# make test-third-party  the tests of Flask and of its extensions, with our sessions
# make mutate            which changes of a module no test notices; MODULES="cookie merge"
#
# All need Python with its venv module, and nothing else: what they install goes
# into .venv. PYTHON=python3.12 chooses another Python, after "make clean";
# PYTHONS="python3.10 /opt/python/bin/python3.13" names those of test-pythons.

PYTHON ?= python3
PYTEST_ARGS ?=
MARKS ?=
WORKERS ?= 2
BENCH_ARGS ?=
MODULES ?=
MUTATE_ARGS ?=
PYTHONS ?= $(foreach minor,10 11 12 13 14 15,$(if $(shell python3.$(minor) -c "" \
    2> /dev/null && echo yes),python3.$(minor)))
SOURCE ?=
PORT ?= 5000

VENV := .venv
BIN := $(VENV)/bin
SPHINX := $(BIN)/sphinx-build -E -W -n docs docs/_build/html

.DEFAULT_GOAL := help
.PHONY: help demo demo-https test check bench docs clean
.PHONY: test-pythons test-lowest test-flask-main test-extras test-third-party mutate dist
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# make /make /p' Makefile

demo: $(VENV)/.demo
	$(BIN)/python -m flask --app example_app run --port $(PORT)

RUN_TESTS = -m pytest -m "$(MARKS)" --numprocesses $(WORKERS) --dist worksteal $(PYTEST_ARGS)

demo-https: $(VENV)/.demo
	$(BIN)/python -m example_app.https --port $(PORT)

test: $(VENV)/.tests
	$(BIN)/python $(RUN_TESTS)

check: $(VENV)/.checks
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(SPHINX)
	$(MAKE) test-extras

dist: $(VENV)/.checks
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

test-extras: dist
	$(BIN)/python tests/packaging/try_extras.py --python $(PYTHON) dist

test-pythons:
	@[ -n "$(PYTHONS)" ] || { echo >&2 "No Python from 3.10 on the path."; exit 1; }
	@set -e; for python in $(PYTHONS); do \
	    $(MAKE) test PYTHON=$$python VENV=$(VENV)/$$(basename $$python) MARKS="not slow"; \
	done

test-lowest: MARKS = not slow
test-lowest: $(VENV)/lowest/.tests
	$(VENV)/lowest/bin/python $(RUN_TESTS)

# Installed each time: the checkout may be another one, or have moved on.
test-flask-main: MARKS = not slow
test-flask-main: $(VENV)/flask-main/.tests
	@[ -f "$(firstword $(SOURCE))/pyproject.toml" ] || { \
	    echo >&2 "SOURCE=path names no checkout of Flask: '$(SOURCE)'."; exit 1; }
	$(VENV)/flask-main/bin/python -m pip install --quiet $(abspath $(SOURCE))
	$(VENV)/flask-main/bin/python $(RUN_TESTS)

test-third-party: $(VENV)/third-party/.tests
	THIRD_PARTY=1 $(VENV)/third-party/bin/python -m pytest \
	    tests/test_third_party_suites.py --numprocesses $(WORKERS) --dist loadgroup \
	    $(PYTEST_ARGS)

mutate: $(VENV)/.mutation
	$(BIN)/python -m tests.mutation $(MUTATE_ARGS) $(MODULES)

bench: $(VENV)/.bench
	$(BIN)/python -m tests.benchmarks $(BENCH_ARGS)

docs: $(VENV)/.docs
	$(SPHINX)

clean:
	rm -rf $(VENV) dist docs/_build .mypy_cache .mutation .pytest_cache .ruff_cache \
	    .hypothesis
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

$(VENV)/.mutation: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[all,example]" --group mutation
	@touch $@

# Autodoc imports the package, and no more than that.
$(VENV)/.docs: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[redis,sqlalchemy]" --group docs
	@touch $@

$(VENV)/.checks: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[all,example]" --group checks
	@touch $@

# Environments of their own, for other versions of packages.

$(VENV)/lowest/.tests: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet uv
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python \
	    --resolution lowest-direct --editable ".[all,example]" --group tests
	@touch $@

$(VENV)/flask-main/.tests: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet --editable ".[all,example]" --group tests
	@touch $@

$(VENV)/third-party/.tests: pyproject.toml tests/third_party/requirements.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet --editable ".[all,example]" \
	    --group tests --requirement tests/third_party/requirements.txt
	@touch $@
