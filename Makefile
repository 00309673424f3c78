# make demo   synthesize, train, evaluate, report; see runs/demo/report.html
# make test   all tests; both set up .venv themselves on first use
.PHONY: setup demo test test-fast lint clean
PYTHON ?= python3
VENV ?= .venv
DEMO ?= full
STAMP = $(VENV)/.complete
BIN = $(VENV)/bin

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints.txt tools/setup_env.sh
	PYTHON=$(PYTHON) tools/setup_env.sh $(VENV)
	@touch $@

demo: $(STAMP)
	$(BIN)/python tools/demo.py --size $(DEMO)

test: $(STAMP) lint
	MPLBACKEND=Agg OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --durations=15

test-fast: $(STAMP)
	MPLBACKEND=Agg OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf runs build *.egg-info .pytest_cache .ruff_cache
