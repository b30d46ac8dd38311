# Two commands do everything: `make demo` and `make test`. Both make the environment first if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test torture check format stored docs coverage clean

demo: $(READY)  ## train standard, FGSM and SLAT on 100 digits, compare them, catch a network that only looks robust
	$(BIN)/layerwise demo

test: $(READY)  ## every test
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist worksteal

torture: $(READY)  ## kills, full disks, hostile files, fuzzing and soak at full size; writes benchmarks/results/torture.json
	rm -f benchmarks/results/torture.json
	OMP_NUM_THREADS=1 LAYERWISE_TORTURE=1 $(BIN)/pytest -q -p no:cacheprovider tests/torture

check: $(READY)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## mend lint and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

stored: $(READY)  ## write anew what the package stores of itself: the schema of recipes, the costs of the papers' tables, the pages of measures and of settings
	$(BIN)/python -m layerwise.experiments.schema
	$(BIN)/python -m benchmarks.costs
	$(BIN)/python -m benchmarks.measures
	$(BIN)/python -m benchmarks.papers

docs: $(READY)  ## the documentation site, in build/site; a broken link is an error
	$(BIN)/sphinx-build -q -W --keep-going -j 2 -b html docs build/site

coverage: $(READY)  ## every test, with coverage of the package
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist worksteal --cov --cov-report=term-missing:skip-covered

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch first and pinned: any other order may bring several gigabytes of another build.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@
