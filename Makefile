# `make demo` and `make test` work on a fresh clone: they create .venv, install, and run.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install FORCE demo test test-environment test-precisions test-large metaworld lint typecheck format clean

help:            ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

install: $(STAMP) ## create the environment and install everything

# torch first and by its exact version: whatever depends on torch is then content with it
$(STAMP): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

demo: $(STAMP)   ## export a real checkpoint, verify it, run 200 steps, print a table
	$(BIN)/python examples/demo.py

test: $(STAMP)   ## all tests that belong to every change
	$(BIN)/python -m pytest -n 2 --dist loadscope -m 'not environment and not large and not precisions'

test-environment: $(STAMP) ## fresh environments: a robot without torch (needs a package index)
	$(BIN)/python -m pytest -m environment

test-precisions: $(STAMP) ## every target at every precision, 1,000 steps (minutes)
	$(BIN)/python -m pytest -m precisions

test-large: $(STAMP) ## the 206m preset: time and memory of the export (minutes, 4 GB of disk)
	$(BIN)/python -m pytest -m large -s

METAWORLD := build/metaworld
METAWORLD_TASKS_1 := reach push hammer door-open drawer-open
METAWORLD_TASKS_2 := drawer-close button-press-topdown window-open window-close faucet-open

metaworld: $(STAMP) ## train the example policy anew: episodes, training, evaluation, model card (under an hour)
	$(BIN)/python examples/metaworld/collect.py $(METAWORLD)/episodes
	$(BIN)/python examples/metaworld/train.py $(METAWORLD)/episodes -o $(METAWORLD)/run
	$(BIN)/lram-export export $(METAWORLD)/run/model.zip -o $(METAWORLD)/metaworld.lram --force \
		--task metaworld/reach-v2 --target onnxruntime --target pytorch
	$(MAKE) -j2 $(METAWORLD)/evaluation-1.json $(METAWORLD)/evaluation-2.json
	$(BIN)/python examples/metaworld/card.py $(METAWORLD) $(METAWORLD)/run

FORCE:

# half of the tasks each, so that both cores have work
$(METAWORLD)/evaluation-%.json: FORCE
	$(BIN)/lram-export evaluate $(METAWORLD)/metaworld.lram --episodes 50 --threads 1 --json \
		$(METAWORLD_TASKS_$*:%=--env metaworld/%-v3) > $@

lint: $(STAMP)   ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) typecheck

# mypy needs the import package as it is installed: exporters/ and runtimes/ inside lram_export/
typecheck: $(STAMP) ## mypy on the package as installed
	rm -rf build/typecheck
	$(BIN)/python -m pip install --quiet --no-deps --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p lram_export

format: $(STAMP) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:           ## remove the environment and everything built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
