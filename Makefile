# Two commands, which do all their own set-up from python3 and make:
#   make demo    trains the example network on handwritten digits and shows what it learned
#   make test    lint, types, doctests and the test suite
# And `make thorough`: every mesh with every sharding, of which `make test` takes a sample.
# PYTHON and VENV choose another interpreter: make test PYTHON=python3.13 VENV=.venv-3.13

PYTHON ?= python3
VENV ?= .venv
IN_VENV = $(VENV)/bin/python

.PHONY: demo test thorough lint bench clean

demo: $(VENV)/ready
	$(IN_VENV) notebooks/digits.py

test: lint
	$(IN_VENV) -m pytest -n 2

thorough: $(VENV)/ready
	$(IN_VENV) -m pytest -n 2 --thorough tests/test_partition.py

lint: $(VENV)/ready
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m mypy

bench: $(VENV)/ready
	$(IN_VENV) benchmarks/layers.py

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(IN_VENV) -m pip install --quiet --upgrade pip
	$(IN_VENV) -m pip install --quiet --editable ".[tests,benchmarks]"
	touch $@

clean:
	rm -rf .venv .venv-* build dist *.egg-info demo-output
