# Each target does all its own set-up; nothing but Python 3.11 or newer is needed.
#   make test PYTHON=python3.12     another interpreter, with a virtual environment of its own

PYTHON ?= python3
# One environment a Python version, so that two can be tested side by side.
VENV ?= .venv/$(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
BIN = $(VENV)/bin
# Optional parts to install: test,cuda for a GPU; test,torch adds the comparisons with PyTorch.
EXTRAS ?= test
comma := ,
INSTALLED = $(VENV)/installed-$(subst $(comma),-,$(EXTRAS))
QUICKSTART = runs/quickstart

.PHONY: help quickstart test test-long bench-check lint clean

help:
	@echo "make quickstart   from nothing to a trained and evaluated detector, minutes on a CPU"
	@echo "make test         set up and run the tests"
	@echo "make test-long    the tests that take minutes each"
	@echo "make bench-check  has anything become slower than experiments/speed/baseline.json?"
	@echo "make lint         check lint and format"
	@echo "make clean        remove the virtual environments and caches"

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ssd_jax needs Python 3.11 or newer; give one with PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

quickstart: $(INSTALLED)
	$(BIN)/ssd-jax data shapes $(QUICKSTART)/shapes
	$(BIN)/ssd-jax train --config configs/quickstart.py --workdir $(QUICKSTART)

test: $(INSTALLED)
	$(BIN)/python -m pytest -m 'not long' -n 2

test-long: $(INSTALLED)
	$(BIN)/python -m pytest -m long

# On a quiet machine; minutes.
bench-check: $(INSTALLED)
	$(BIN)/python experiments/speed/check.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
