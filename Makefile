# make demo   set up, then the whole story on handwritten digits (about 4 minutes on 2 cores)
# make test   set up, then the test suite, on 2 cores (WORKERS=2)
# make lint   what CI checks: style (ruff), types (mypy) and the direction of imports (import-linter)
# make docs   the site, into build/site; look at it by: python -m http.server --directory build/site
# make wheel  build the package, install it into an empty environment and run it there
# make notebooks   run the notebooks, and store the images that GitHub shows of them
# make release FLAGS="..."   everything behind the released weights; flags: python scripts/release.py --help

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test lint setup docs notebooks wheel clean release

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/python scripts/demo.py

# A file stays in one process, as its tests share what takes long to make. In the order of their names: those of fewest
# tests, which xdist would leave for the end, are among the longest, and one process would wait for the other.
test: setup
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: setup
	$(BIN)/pip install --quiet -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

notebooks: setup
	$(BIN)/python notebooks/execute.py

wheel: setup
	$(BIN)/pip install --quiet build "setuptools>=77"
	BIN=$(BIN) bash .ci/wheel

release: setup
	$(BIN)/python scripts/release.py $(FLAGS)

# Not runs/, which holds people's models.
clean:
	rm -rf $(VENV) build
