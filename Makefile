# Every target prepares .venv when it must; with nothing to do that costs no more than starting make.
PYTHON ?= python3
SHELL := /bin/bash
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
COMPILE := .venv-lock/bin/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make lock"
SERVER := docs/deployment/server/requirements.txt
EXTRAS := --extra train --extra pipeline --extra s3 --extra postgres --extra ray --extra serve --extra search --extra completion --extra heic --extra tiff --extra timm --extra tune --extra docs --extra dev

# Every direct dependency without its bounds.
NEWEST = $(shell $(BIN)/python -c "import re, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
  print(*{re.split('[<>=]', text)[0] for extra in (project['dependencies'], *project['optional-dependencies'].values()) \
  for text in extra if not text.startswith(project['name'])})")
WITH ?= --upgrade-strategy eager $(NEWEST)
TESTS ?= tests
CORES := $(shell getconf _NPROCESSORS_ONLN)
# One more than there are cores: many tests wait for the processes that they started. The fast ones do not.
WORKERS ?= $(shell expr $(CORES) + 1)

.PHONY: demo ui test types tests test-fast versions docs coverage package bench soak reference format lock help

demo: .venv/installed ## raw images to a served encoder in ./demo, through Dagster
	simclr demo demo

ui: .venv/installed ## the Dagster UI on the demo workspace
	simclr --workspace demo ui

test: .venv/installed .venv/browser-installed ## everything that must hold: format, lint, types, layers, tests
	ruff format --check .
	ruff check .
	lint-imports
	$(MAKE) --no-print-directory --jobs 2 types tests

types: .venv/installed ## mypy; in one process, so next to the tests, whose processes often wait
	mypy

tests: .venv/installed .venv/browser-installed ## all of them, without format, lint, types and layers
	pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-fast: .venv/installed ## without those that take more than half a second, some of which need a browser
	pytest -n $(CORES) --dist loadfile --no-loadscope-reorder -m "not slow and not seconds"

versions: .venv/installed ## all but the slow tests with WITH="torch==2.8.*", by default the newest of everything; the next target restores the lock
	rm .venv/installed
	$(BIN)/pip install --quiet --upgrade $(WITH)
	$(BIN)/pip install --quiet --no-deps antlr4-python3-runtime==4.13.2
	pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow" --ignore tests/deployment $(TESTS)

docs: .venv/installed ## the site, in docs/_build; any warning is an error
	python -m sphinx -W --keep-going -q -b html docs docs/_build
	@echo "open docs/_build/index.html"

coverage: .venv/installed ## the lines that all but the slow tests reach, in every process; fails below the floor in pyproject.toml
	pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow" --cov

package: .venv/installed ## wheel and source archive in dist/, checked as the package index checks them
	rm -rf dist
	python -m build --no-isolation
	twine check --strict dist/*

bench: .venv/bench-installed ## pretraining side by side with pinned peers; --json FILE keeps a result
	for name in nt_xent loss_bytes augmentations dataloading resume pretrain; do python -m benchmarks.simclr_core.$$name || exit 1; done

soak: .venv/installed ## 200 kills of a pretraining on two processes, and the tests that follow chance with all repetitions
	python -m benchmarks.simclr_core.pretrain_soak --kills 200
	SIMCLR_ALL_REPETITIONS=1 pytest -n auto --dist loadfile --no-loadscope-reorder -m repeated

reference: .venv/installed ## the comments of params.yaml and docs/reference, written from the code
	python -m pipeline.cli.reference

format: .venv/installed ## by ruff, with the fixes that it is sure of
	ruff format .
	ruff check --fix .

lock: ## re-resolve the lock files from pyproject.toml, with the hash of every file that the index has of a version
	$(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet uv
	$(COMPILE) --universal $(EXTRAS) pyproject.toml --output-file requirements.lock
	$(COMPILE) --universal --extra bench pyproject.toml --constraint requirements.lock --output-file benchmarks/requirements.lock
	$(COMPILE) --python-platform linux --extra serve pyproject.toml --constraint requirements.lock --output-file $(SERVER)
	rm -rf .venv-lock

help: ## these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --no-deps: the lock is complete, and it overrides one pin that pip would refuse (CONTRIBUTING, "The lock").
.venv/installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

.venv/bench-installed: .venv/installed benchmarks/requirements.lock
	$(BIN)/pip install --quiet --no-deps --require-hashes -r benchmarks/requirements.lock
	touch $@

# Outside the clone's own folders, where the tests of the docs would read the packages' Markdown.
BROWSER := docs/browser/package.json docs/browser/package-lock.json
CHROMIUM := $(addprefix tests/chromium/,package.json package-lock.json unpack.mjs fonts.conf chromium.sh)
ACCESSIBILITY := $(addprefix tests/accessibility/,package.json package-lock.json)
NPM_CI := npm ci --ignore-scripts --no-audit --no-fund --loglevel=error --prefix

# onnxruntime-web, axe-core, and the Chromium that runs both; that one is built for x86-64 alone, elsewhere the tests take the system's.
.venv/browser-installed: $(BROWSER) $(ACCESSIBILITY) $(CHROMIUM) | .venv/installed
	rm -rf .venv/browser .venv/accessibility .venv/chromium
	mkdir .venv/browser .venv/accessibility .venv/chromium
	cp $(BROWSER) .venv/browser/
	cp $(ACCESSIBILITY) .venv/accessibility/
	cp $(CHROMIUM) .venv/chromium/
	$(NPM_CI) .venv/browser
	$(NPM_CI) .venv/accessibility
	$(NPM_CI) .venv/chromium
	TMPDIR=$(CURDIR)/.venv/chromium node .venv/chromium/unpack.mjs
	rm -r .venv/chromium/node_modules
	test "$$(uname -sm)" != "Linux x86_64" || install .venv/chromium/chromium.sh $(BIN)/chromium
	touch $@
