# Two commands: `make demo` and `make test`. Both set up what they need first (`make setup`).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The embedding models' files come with their packages; nothing is fetched from a model hub.
export HF_HUB_OFFLINE ?= 1
LOCK ?= requirements/cpu.lock
# A stamp a lock: another lock installs anew.
STAMP := $(VENV)/.installed-$(basename $(notdir $(LOCK)))

.PHONY: setup demo test test-slow test-all check clean help
help:
	@echo "make demo      set up, run the experiment on the simulated marketplace, write runs/demo/report/lift.html"
	@echo "make test      set up, run the fast tests"
	@echo "make test-slow set up, run the slow tests (processes killed, real models, a browser); test-all: both"
	@echo "make check     ruff and mypy"
	@echo "make setup     the virtual environment in .venv   (LOCK=requirements/gpu.lock for a CUDA machine)"
	@echo "make clean     remove .venv and caches (not runs/ and work/, which are yours)"

setup: $(STAMP)

# torch goes first, with its own dependencies, so that it imports even where the index serves only the CUDA build.
# Everything else is a complete pinned list installed with --no-deps: torchrec's metadata asks for the CUDA build of
# fbgemm by name, and a resolver would bring it in beside the CPU build.
$(STAMP): $(LOCK) requirements/dev.lock pyproject.toml kernels/native/dot_interaction.cpp
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c $(LOCK) torch
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -r $(LOCK) -r requirements/dev.lock
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: setup
	$(BIN)/recsys demo --out runs/demo

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-all: test test-slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache *.egg-info
