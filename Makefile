# Everything starts from nothing but Python 3.11+ and pip: the first target makes .venv and installs into it once.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DIGITS := experiments/digits/supervised.toml experiments/digits/fixmatch.toml experiments/digits/mean_teacher.toml

.PHONY: quickstart test check format table benchmark clean

quickstart: $(INSTALLED)  ## Supervised, FixMatch and Mean Teacher on the same 40 labels; about three minutes.
	$(BIN)/fedssl run $(DIGITS) --seeds 2

test: $(INSTALLED)  ## All tests.
	$(BIN)/python -m pytest

check: $(INSTALLED)  ## Format, lint, types, import layers.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)  ## Format and mend what the linter can.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

table: $(INSTALLED)  ## The README's table: the quickstart over five seeds.
	$(BIN)/fedssl run $(DIGITS) --seeds 5

benchmark: $(INSTALLED)  ## Rounds a second beside Flower's own simulation runtime.
	$(BIN)/python benchmarks/rounds.py

clean:  ## Remove what was installed and built; runs/ stays.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
