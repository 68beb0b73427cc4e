# Every target sets up what it needs in .venv; nothing else is required than python3.11 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: quickstart install test lint type docs smoke clean

quickstart: .venv/installed-core  ## Install, then run the main job on MovieLens-100K.
	$(BIN)/recgrit run configs/movielens-100k.yaml

install: .venv/installed-dev  ## Install with everything for development.

test: .venv/installed-dev  ## Run the whole test suite.
	$(BIN)/python -m pytest

lint: .venv/installed-dev  ## Style and import direction.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: .venv/installed-dev  ## Types.
	$(BIN)/mypy

docs: .venv/installed-dev  ## The site of docs/, into build/site.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

smoke: .venv/installed-dev  ## The whole pipeline on a small slice, a minute.
	$(BIN)/recgrit run configs/movielens-100k.yaml run.dir=runs/smoke embedding.encoder=lsa \
		retriever.epochs=1 tracking.backend=none

clean:
	rm -rf .venv

.venv/installed-core: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[cpu,offline]"
	touch $@

.venv/installed-dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[cpu,offline,dev]"
	touch $@ .venv/installed-core
