# `make run`, `make test`; from elsewhere `make -C path/to/this/folder run` or `make -f path/to/Makefile run`.
ROOT := $(patsubst %/,%,$(dir $(realpath $(lastword $(MAKEFILE_LIST)))))
PYTHON ?= python3
BIN := $(ROOT)/.venv/bin
READY := $(ROOT)/.venv/.ready

.PHONY: run test lab tensorboard check

run: $(READY)
	cd "$(ROOT)" && "$(BIN)/gpt2opt" notebook project.ipynb

test: $(READY)
	cd "$(ROOT)" && "$(BIN)/python" -m pytest

lab: $(READY)
	cd "$(ROOT)" && "$(BIN)/jupyter" lab project.ipynb

tensorboard: $(READY)
	cd "$(ROOT)" && "$(BIN)/tensorboard" --logdir traces

check: $(READY)
	cd "$(ROOT)" && "$(BIN)/ruff" format --check . && "$(BIN)/ruff" check .

$(READY): $(ROOT)/requirements.txt $(ROOT)/pyproject.toml
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v < (3, 13) or sys.exit("Python %d.%d found, 3.10, 3.11 or 3.12 expected: neural-compressor 3.7.1 holds numpy<2, which has no wheel for 3.13. Install one of these and run: make PYTHON=python3.11 run" % v)'
	"$(PYTHON)" -m venv "$(ROOT)/.venv"
	"$(BIN)/python" -m pip install --disable-pip-version-check -r "$(ROOT)/requirements.txt"
	"$(BIN)/python" -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e "$(ROOT)"
	touch "$(READY)"
