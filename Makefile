# `make demo` and `make test` need nothing before them: they install into .venv first, once for each change of pyproject.toml.
PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell sed -n 's/^ *"\(torch>=[^"]*\)".*/\1/p' pyproject.toml)

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format types wheel clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

install: .venv/installed  ## everything, into .venv (about 2 GB)

# torch goes first and alone: asked for by name, pip takes the CPU build where its index or --find-links offers one.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || \
	{ echo "error: '$(PYTHON)' is not Python 3.11 or newer; name one that is: make install PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: install  ## the study in small: a base, its long-context continual pre-training, and the report
	$(BIN)/lccp train run=tiny_emergence
	$(BIN)/lccp train run=tiny_base
	$(BIN)/lccp train run=tiny_lccp
	$(BIN)/lccp report "$$(ls -td runs/tiny_lccp-s0-* | head -n 1)"

test: export OMP_NUM_THREADS = 1
test: install  ## the tests, in two processes of one thread
	$(BIN)/python -m pytest -q -n 2

lint: install  ## ruff: rules and layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install  ## mypy
	$(BIN)/mypy

wheel: install  ## the wheel, into dist/
	rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation

clean:  ## remove what was built, not .venv nor runs/
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find lccp_sim tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
