# Everything below sets itself up in .venv; nothing else has to be installed than Python 3.11 and make.
# Other interpreter: make PYTHON=python3.12 ...    Other pip settings: pip's own PIP_* variables and files.

PYTHON ?= python3
PYTEST ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check
TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
DEMO_READY := $(VENV)/.demo-ready
DEV_READY := $(VENV)/.dev-ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format bench clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | while IFS='|' read -r name text; do printf '  make %-9s %s\n' "$$name" "$$text"; done

demo: $(DEMO_READY) ## Quantise, export, verify and score a small network; writes demo-output/
	@$(BIN)/python examples/demo.py

test: $(DEV_READY) ## Run the tests that take seconds, two at a time
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile $(PYTEST)

test-all: $(DEV_READY) ## Run all tests, the slow ones too
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "" --numprocesses 2 --dist loadfile $(PYTEST)

lint: $(DEV_READY) ## Check style, formatting, types and the rooms' imports
	@echo "ruff check";  $(BIN)/ruff check --quiet .
	@echo "ruff format"; $(BIN)/ruff format --quiet --check . || { echo "run 'make format'"; exit 1; }
	@echo "pyright";     $(BIN)/pyright
	@echo "lint-imports"; $(BIN)/lint-imports --no-logo

format: $(DEV_READY) ## Format the code and mend what ruff can mend
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

bench: $(DEMO_READY) ## Time every engine and a training step, measure memory; prints Markdown
	@$(BIN)/python benchmarks/speed.py
	@$(BIN)/python benchmarks/speed.py --network edsr-baseline-x4
	@$(BIN)/python benchmarks/memory.py
	@$(BIN)/python benchmarks/training.py
	@$(BIN)/python benchmarks/odm.py
	@$(BIN)/python benchmarks/offsets.py

clean: ## Remove the environment, caches and outputs
	@rm -rf $(VENV) demo-output build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The pinned PyTorch goes first, by itself: what is installed after it finds the pin met and changes nothing.
$(VENV)/.torch-ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "srquant needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing $(TORCH), the largest part; this may take minutes"
	@$(PIP) --upgrade "pip>=25.1"
	@$(PIP) "$(TORCH)"
	@touch $@

$(DEMO_READY): $(VENV)/.torch-ready
	@echo "installing srquant with its engines"
	@$(PIP) --editable '.[onnx,openvino,litert]' --group demo
	@touch $@

$(DEV_READY): $(VENV)/.torch-ready
	@echo "installing srquant and the tools of its developers"
	@$(PIP) --editable '.[all]' --group dev
	@touch $@ $(DEMO_READY)
