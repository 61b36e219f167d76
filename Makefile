# Every target makes .venv from constraints.txt first, when it is missing; nothing else beside this folder is needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.exitwise-ready
SINGLE := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo test check format bench report clean
.DEFAULT_GOAL := demo

$(READY): pyproject.toml constraints.txt
	@echo "making $(VENV) (once; a few minutes on a slow line)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@$(BIN)/exitwise kernel > /dev/null || echo "without the kernel all works, but language models decode slower"
	@touch $(READY)

demo: $(READY)          ## the main job on the embedded images: full depth beside early exits, a table, a report
	@$(BIN)/exitwise demo

test: $(READY)          ## all tests, one thread each, two at a time
	@$(SINGLE) $(BIN)/python -m pytest -n 2

check: $(READY)         ## formatting, a few rules, types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(READY)        ## what check would complain of, mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(READY)         ## the measured claims; runs go to results/, the last is results/summary.json
	@$(BIN)/python -m exitwise.bench

report: $(READY)        ## the HTML report, drawn again from results/*.json alone
	@$(BIN)/exitwise report

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
