# make demo, make test and make check set everything up by themselves, in a virtual environment of their own.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: demo test test-hub1 slow bench check docs clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto

slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow -n auto --durations 10

# the same Hub, by the newest huggingface_hub 1.x, which transformers 5 may not accept: an environment of its own
test-hub1:
	$(MAKE) $(VENV)-hub1/.test VENV=$(VENV)-hub1
	$(VENV)-hub1/bin/python -m pip install --quiet --disable-pip-version-check 'huggingface_hub<2'
	$(VENV)-hub1/bin/python -m pytest tests/weights tests/models/test_entries.py

# short versions, to build/bench; results/ keeps the full ones
bench: $(VENV)/.demo
	$(BIN)/python benchmarks

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

# one stamp an extra: installed once, and again when the metadata changes
$(VENV)/.%: setup.cfg | $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	touch $@

$(VENV):
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) $(VENV)-hub1 build dist site *.egg-info
