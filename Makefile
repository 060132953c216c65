# make setup | demo | web | test | soak | lint | docs. Needs Python 3.11 or newer and git; everything else goes into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# two workers, one thread each: what a two-core machine runs fastest
TEST_FLAGS ?= -n 2 --dist loadfile --no-loadscope-reorder -q

KILLS ?= 100
FUZZ ?= 40

.PHONY: setup demo web test soak lint format docs clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(STAMP): requirements.txt setup.py pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no python3 found; install Python 3.11 or pass PYTHON=/path/to/python"; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is $$("$(PYTHON)" -V 2>&1); AICL needs Python 3.11 or newer (make PYTHON=/path/to/python3.11)"; exit 2; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "error: $(PYTHON) has no venv module; install it (Debian: python3-venv) or pass another PYTHON"; exit 2; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "installing the pinned requirements into $(VENV) (about 6 GB, a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24" "setuptools>=77"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

# one video of an unseen action, on the command line
demo: setup
	@$(BIN)/python scripts/quickstart.py

# the page on which everything can be tried
web: setup
	@$(BIN)/python scripts/demo.py

test: setup
	@$(BIN)/python -m pytest -m "not gpu" $(TEST_FLAGS)

# what must survive: kills of every kind at moments drawn from a seed, full disks, and FUZZ inputs of each outside format
soak: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak --kills $(KILLS)
	@FUZZ_INPUTS=$(FUZZ) $(BIN)/python -m pytest tests/fuzz -q

lint: setup
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

format: setup
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

docs: setup
	@NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true PYTHONPATH=. $(BIN)/mkdocs build --quiet
	@echo "the documentation is in outputs/site/index.html"

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
