# Every target sets up what it needs in .venv; nothing else is required than python3.11 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Two at once, each with one thread: a worker that runs out of tests takes some of the other's.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

.PHONY: quickstart install test test-fast graph lint type notebooks docs smoke clean

quickstart: .venv/installed-core  ## Install, then run the main job on MovieLens-100K.
	$(BIN)/recgrit run configs/movielens-100k.yaml

install: .venv/installed-dev  ## Install with everything for development.

test: .venv/installed-dev  ## The whole test suite: at most 15 minutes on 2 cores.
	$(PYTEST)

test-fast: .venv/installed-dev  ## Unit tests and doctests: at most 2 minutes on 2 cores.
	$(PYTEST) -m unit

graph: .venv/installed-dev  ## Floors and circles of the package, long files, lines.
	$(BIN)/python tests/import_graph.py

lint: .venv/installed-dev  ## Style, import direction, spelling.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/codespell README.md ARCHITECTURE.md CONTRIBUTING.md CHANGELOG.md docs recgrit pipelines benchmarks configs

type: .venv/installed-dev  ## Types.
	$(BIN)/mypy

notebooks: .venv/installed-dev  ## Execute the notebooks into build/notebooks, for the site.
	$(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --output-dir build/notebooks \
		notebooks/*.ipynb

docs: .venv/installed-dev  ## The site of docs/, into build/site.
	$(BIN)/python docs/generate.py --check
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
