# Every target installs what it needs into .venv. Only python3.11 and make have to be there.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Two workers run tests at once, with one thread each. A worker without tests takes over some tests of
# the other worker.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

.PHONY: quickstart install test test-fast graph lint type notebooks docs smoke clean

quickstart: .venv/installed-core  ## Install recgrit and run the whole pipeline on MovieLens-100K.
	$(BIN)/recgrit run configs/movielens-100k.yaml

install: .venv/installed-dev  ## Install recgrit with everything for development.

test: .venv/installed-dev  ## Run the whole test suite: at most 15 minutes on 2 cores.
	$(PYTEST)

test-fast: .venv/installed-dev  ## Run unit tests and doctests: at most 2 minutes on 2 cores.
	$(PYTEST) -m unit

graph: .venv/installed-dev  ## Print layers and cycles of the package, long files, lines.
	$(BIN)/python tests/import_graph.py

lint: .venv/installed-dev  ## Check style, import directions and spelling.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/codespell README.md ARCHITECTURE.md CONTRIBUTING.md CHANGELOG.md docs recgrit pipelines benchmarks configs

type: .venv/installed-dev  ## Check types.
	$(BIN)/mypy

notebooks: .venv/installed-dev  ## Execute the notebooks into build/notebooks, for the site.
	$(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --output-dir build/notebooks \
		notebooks/*.ipynb

docs: .venv/installed-dev  ## Build the site of docs/ into build/site.
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

smoke: .venv/installed-dev  ## Run the whole pipeline with small settings, in a minute.
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
