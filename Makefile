# Two commands, which do all their own set-up from python3 and make:
#   make demo    trains the example network on handwritten digits and shows what it learned
#   make test    lint, types, doctests and the test suite
# and one for who changes the kernels:
#   make sanitize COUNT=5000    random problems against plain loops, under AddressSanitizer, UBSan and ThreadSanitizer
# For readers:
#   make notebooks   every notebook, executed, as .ipynb in built-notebooks/
#   make docs        the API reference, in site/
# And `make thorough`: every mesh with every sharding, of which `make test` takes a sample.
# PYTHON and VENV choose another interpreter: make test PYTHON=python3.13 VENV=.venv-3.13

PYTHON ?= python3
VENV ?= .venv
COUNT ?= 5000
IN_VENV = $(VENV)/bin/python

.PHONY: demo test thorough lint sanitize bench report notebooks docs clean

demo: $(VENV)/ready
	$(IN_VENV) notebooks/digits.py

test: lint
	$(IN_VENV) -m pytest -n 2

thorough: $(VENV)/ready
	$(IN_VENV) -m pytest -n 2 --thorough tests/test_partition.py

lint: $(VENV)/ready
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m mypy

sanitize: $(VENV)/ready
	$(VENV)/bin/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(VENV)/bin/ninja \
		-DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS=-O1 -DGCONV_FUZZ=ON -DGCONV_WERROR=ON -DPython_EXECUTABLE=$(CURDIR)/$(IN_VENV)
	$(VENV)/bin/cmake --build build/sanitize --target parallel parallel_threads fuzz fuzz_threads
	$(IN_VENV) tests/native/symbols.py $$(find build/sanitize -name 'kernels.cc*.o')
	build/sanitize/parallel
	build/sanitize/parallel_threads
	build/sanitize/fuzz $(COUNT)
	build/sanitize/fuzz_threads $$(($(COUNT) / 3))

bench: $(VENV)/ready
	$(IN_VENV) -m benchmarks

report: $(VENV)/ready
	$(IN_VENV) -m benchmarks.report --page

notebooks: $(VENV)/ready
	mkdir -p built-notebooks
	for name in $(basename $(notdir $(wildcard notebooks/*.py))); do \
		$(IN_VENV) -m jupytext --to ipynb --output built-notebooks/$$name.ipynb notebooks/$$name.py && \
		$(IN_VENV) -m jupyter execute --inplace built-notebooks/$$name.ipynb || exit 1; \
	done

docs: $(VENV)/ready
	$(IN_VENV) -m pip install --quiet --editable ".[docs]"
	$(IN_VENV) -m mkdocs build --strict

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(IN_VENV) -m pip install --quiet --upgrade pip
	$(IN_VENV) -m pip install --quiet --editable ".[tests]"
	touch $@

clean:
	rm -rf .venv .venv-* build dist *.egg-info demo-output built-notebooks site
