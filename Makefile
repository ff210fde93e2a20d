# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
SEED ?= 0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := 2.13.0
TORCH_CPU := https://download.pytorch.org/whl/cpu
PIP := $(BIN)/pip --quiet --disable-pip-version-check
# Tiny models are slower on two threads than on one, so the cores go to two test processes instead.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test test-all faults lint results clean

# Without a GPU the pinned CPU build of torch goes in first, so that nothing pulls gigabytes of CUDA packages;
# with one, pip's default build, which is the CUDA one on Linux.
$(STAMP): pyproject.toml Makefile
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): one to three minutes"
	@if [ "$$(uname)" = Darwin ] || nvidia-smi -L >/dev/null 2>&1; then \
	  $(PIP) install "torch>=$(TORCH)"; \
	else \
	  $(PIP) install "torch==$(TORCH)+cpu" 2>/dev/null || $(PIP) install "torch==$(TORCH)" --index-url $(TORCH_CPU); \
	fi
	$(PIP) install -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python recipes/demo/run_nights.py --seed $(SEED) $(if $(BASELINE),--baseline)

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-all: $(STAMP)
	$(PYTEST)

# Kills, failing calls, power cuts, damaged files, races and planted bugs at large (strace has to be installed): an hour
# of one core. The figures go to benchmarks/results/faults.json.
faults: $(STAMP)
	$(BIN)/python benchmarks/faults.py
	ILLM_LONG_LIVES=2000 $(BIN)/python -m pytest tests/faults

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

results: $(STAMP)
	$(BIN)/python benchmarks/results_page.py

clean:
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache
