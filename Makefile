# `make run`, `make test`; from elsewhere `make -C path/to/this/folder run` or `make -f path/to/this/folder/Makefile run`.
ROOT := $(shell cd "$$(dirname "$(strip $(MAKEFILE_LIST))")" && pwd)
PYTHON ?= python3
IN_ROOT := cd "$(ROOT)" &&
BIN := .venv/bin

.PHONY: run test bench lab tensorboard check install

run: install
	$(IN_ROOT) $(BIN)/gpt2opt notebook project.ipynb

test: install
	$(IN_ROOT) $(BIN)/python -m pytest

bench: install
	$(IN_ROOT) $(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation -e ".[bench]"
	$(IN_ROOT) $(BIN)/gpt2opt bench

lab: install
	$(IN_ROOT) $(BIN)/jupyter lab project.ipynb

tensorboard: install
	$(IN_ROOT) $(BIN)/tensorboard --logdir traces

check: install
	$(IN_ROOT) $(BIN)/ruff format --check . && $(BIN)/ruff check .

# Nothing to do while .venv is newer than what it was made from. Not a file target: its path may hold spaces.
install:
	@$(IN_ROOT) if [ .venv/.ready -nt requirements.txt ] && [ .venv/.ready -nt pyproject.toml ]; then exit 0; fi; set -ex; \
	"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v < (3, 13) or sys.exit("Python %d.%d found, 3.10, 3.11 or 3.12 expected: neural-compressor 3.7.1 holds numpy<2, which has no wheel for 3.13. Install one of these and run: make PYTHON=python3.11 run" % v)'; \
	"$(PYTHON)" -m venv .venv; \
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt; \
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	touch .venv/.ready
