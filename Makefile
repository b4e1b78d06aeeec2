# Every target that needs Python first makes .venv from the lock, once. PYTHON picks the interpreter it is made with.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.made-from-the-lock
# Runs a program of tests/ with what it imports from the other folders there.
TEST_PYTHON := PYTHONPATH=$(CURDIR)/tests/support:$(CURDIR)/tests/faults:$(CURDIR)/tests/bench $(BIN)/python
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Kernel tests need a kernel that has WireGuard. Where one stands beside the repository, they run under it.
ifeq ($(origin PEERLANE_TEST_KERNEL),undefined)
ifneq ($(wildcard ../shared/kernel/run),)
export PEERLANE_TEST_KERNEL := ../shared/kernel/run --
endif
endif

# Tests start hundreds of processes. Where no byte code may be written, each would compile the sources once more.
unexport PYTHONDONTWRITEBYTECODE

# The marks of the tests that make test leaves out; tests/support/speeds.py tells them at its end.
APART := kernel or slow or faults or browser
# Each file in one process. Most quick tests wait for processes, so twice as many run at a time as there are processors;
# a kernel of its own and a fault run keep one busy.
QUICK = -n $$(( 2 * $$(nproc) )) --dist loadfile -m 'not ($(APART))'
OTHERS = -n $$(nproc) --dist loadfile -m '$(APART)'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo venv test test-all bench bench-callers bench-scale bench-kernel pictures night walks faults mutants fuzz check format lint types imports lock clean

help:  ## list the targets
	@echo "usage: make TARGET [PYTHON=python3.12] [ARGS='...']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(STAMP)  ## the whole of Peerlane on this machine: no root, no Redis, ends by itself
	@$(BIN)/peerlane demo $(ARGS)

venv: $(STAMP)  ## make .venv from the lock, nothing else

test: $(STAMP)  ## the quick tests: Python and make suffice (ARGS go to pytest)
	@$(BIN)/pytest $(QUICK) $(ARGS)

# What is missing, a kernel or a program, fails here instead of being skipped.
test-all: $(STAMP)  ## the tests that make test leaves out: kernel, faults, slow, browser; nothing may be missing
	@CI=true $(BIN)/pytest $(OTHERS) $(ARGS)

bench: $(STAMP)  ## what it costs, on this machine: a lane and its callers beside a no-op task, measuring, a flood, a sweep (ARGS=--json)
	@for bench in lane drain callers lists measurements flood sweep; do $(TEST_PYTHON) tests/bench/bench_$$bench.py $(ARGS) || exit; done

# The picture that the README shows.
bench-callers: $(STAMP)  ## what few and many callers get from one lane, beside a no-op task
	@$(TEST_PYTHON) tests/bench/bench_callers.py --json docs/goodput.json --svg docs/goodput.svg $(ARGS)

# The picture and the figures that the README shows: ARGS='--peers 0,10000,50000,100000' measures one point more.
bench-kernel: $(STAMP)  ## create and delete over the number of peers, beside wg syncconf (root, WireGuard)
	@$(TEST_PYTHON) tests/bench/bench_curve.py --json docs/latency.json --svg docs/latency.svg $(ARGS)

# Both pictures of the README, in a few minutes; make bench-callers and make bench-kernel measure more beside them.
pictures: $(STAMP)  ## measure and draw docs/goodput.svg and docs/latency.svg anew (a kernel with WireGuard)
	@$(TEST_PYTHON) tests/bench/bench_callers.py --goodput --json docs/goodput.json --svg docs/goodput.svg
	@$(TEST_PYTHON) tests/bench/bench_curve.py --requests 200 --json docs/latency.json --svg docs/latency.svg

bench-scale: $(STAMP)  ## one gateway over its peers: memory, start, creates meanwhile (ARGS='--peers 100000,1000000')
	@$(TEST_PYTHON) tests/bench/bench_scale.py $(ARGS)

night: $(STAMP)  ## plays the table of docs/runbooks.md: what an operator sees of each event, and when; takes an hour
	@PEERLANE_TEST_NIGHT=field $(BIN)/pytest -s tests/operators/play_night.py $(ARGS)

walks: $(STAMP)  ## calls, functions and files of a create, a sweep and a list (ARGS=--json)
	@$(TEST_PYTHON) tests/bench/walks.py $(ARGS)

faults: $(STAMP)  ## seeded fault runs on a real kernel, server and queue (ARGS='--runs 20 --seed 7')
	@$(TEST_PYTHON) tests/faults/fault_runs.py $(ARGS)

mutants: $(STAMP)  ## small faults, planted one at a time: which test notices each (ARGS='--only NAME', --json)
	@PYTHONPATH=$(CURDIR)/tests/mutants $(BIN)/python tests/mutants/mutants.py $(ARGS)

fuzz: $(STAMP)  ## a hundred thousand messages and records that nobody wrote by hand (ARGS="--messages N")
	@$(TEST_PYTHON) tests/faults/fuzz_run.py $(ARGS)

check: lint types imports test  ## what a change must pass: format, lint, types, imports, quick tests

format: $(STAMP)  ## rewrite the sources the way lint wants them
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .

lint: $(STAMP)  ## format and style, changing nothing
	@$(BIN)/ruff format --quiet --check . || { echo "make format mends that" >&2; exit 1; }
	@$(BIN)/ruff check --quiet .

types: $(STAMP)  ## pyright, strict
	@$(call quietly,$(BIN)/pyright)

imports: $(STAMP)  ## workers -> tasks -> config, and netlink behind its one door
	@$(call quietly,$(BIN)/lint-imports --no-logo)

LOCK := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-annotate --no-header --quiet

# The second is that part of the first which the image is made from: no developer's tool is among it.
lock: $(STAMP)  ## write constraints.txt and constraints-image.txt anew (ARGS=--upgrade moves the pins)
	@$(LOCK) --all-extras --group dev --output-file constraints.txt $(ARGS)
	@rm -f constraints-image.txt
	@$(LOCK) --extra gateway --extra flower --extra exporter --group build --constraint constraints.txt --output-file constraints-image.txt

clean:  ## remove .venv and everything that was built or cached
	@rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find config tasks workers peerlane tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: whatever fails or is interrupted before, the next make begins again.
$(STAMP): constraints.txt pyproject.toml
	@rm -f $@
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { $(make_venv); }
	@$(call quietly,$(PIP_INSTALL) --require-hashes -r constraints.txt)
	@$(call quietly,$(PIP_INSTALL) --no-deps --no-build-isolation -e .)
	@touch $@

define make_venv
command -v $(PYTHON) >/dev/null || \
  { echo "There is no $(PYTHON) here. Name a Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "Peerlane needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name one: make PYTHON=python3.12" >&2; exit 1; }; \
echo "Making $(VENV) from constraints.txt; this takes a minute, once." >&2; \
$(PYTHON) -m venv --clear $(VENV)
endef

# Prints what a command says only if it fails.
define quietly
said=$$($(1) 2>&1) || { printf '%s\n' "$$said" >&2; exit 1; }
endef
