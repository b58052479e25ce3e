# `make run`, `make test`; from elsewhere `make -C path/to/this/folder run` or `make -f path/to/this/folder/Makefile run`.
ROOT := $(shell cd "$$(dirname "$(strip $(MAKEFILE_LIST))")" && pwd)
PYTHON ?= python3
IN_ROOT := cd "$(ROOT)" &&
BIN := .venv/bin
SUPPORTED := import sys; v = sys.version_info[:2]; (3, 10) <= v < (3, 13) or sys.exit("Python %d.%d found, 3.10, 3.11 or 3.12 expected: neural-compressor 3.7.1 holds numpy<2, which has no wheel for 3.13. Install one of these and run: make PYTHON=python3.11 run" % v)
PIP := $(BIN)/python -m pip install --disable-pip-version-check
COURSE_PYTHON ?= python3.10
COURSE_TESTS := tests/apps/test_course.py tests/test_prune.py tests/decoding/test_engines.py
IDENTITY := import sys; print(sys.base_prefix, *sys.version_info[:3])

.PHONY: run test test-course test-end-to-end test-pythons race lab tensorboard docs check lock install

run: install
	$(IN_ROOT) $(BIN)/python -m gpt2opt.notebook project.ipynb

test: install
	$(call with_extra,test) && $(BIN)/python -m pytest -m "not end_to_end" -n 2 --dist loadfile --no-loadscope-reorder --durations=10

# What a person does: the notebook in JupyterLab, in a headless Chromium, which tests/browser/install.sh brings, and the commands of the documents.
test-end-to-end: install
	$(call with_extra,server) && $(call with_extra,test) && $(BIN)/python -m pytest -m end_to_end -n 2 --dist loadfile --durations=5

# Every Python that is supported, each in a fresh clone of the last commit with an environment of its own; once before a release.
test-pythons:
	$(IN_ROOT) set -e; for version in 3.10 3.11 3.12; do \
		folder="$$(mktemp -d)"; git clone -q . "$$folder/gpt2opt"; \
		$(MAKE) -C "$$folder/gpt2opt" PYTHON="python$$version" test; \
		rm -rf "$$folder"; \
	done

# Tests with the oldest packages, those of the course, in an environment of their own. Not part of `test`: it is 6 GB, since torch 2.3
# comes for CUDA alone from the package index.
test-course:
	@$(IN_ROOT) set -e; \
	if [ ! .venv-course/.ready -nt tests/course-requirements.txt ]; then \
		[ -e .venv-course ] || "$(COURSE_PYTHON)" -m venv .venv-course; \
		.venv-course/bin/python -m pip install --disable-pip-version-check -r tests/course-requirements.txt; \
		touch .venv-course/.ready; \
	fi; \
	.venv-course/bin/python -m pytest $(COURSE_TESTS)

race: install
	$(call with_extra,bench) && $(BIN)/python -m experiments race

# Jupyter refuses to run as root, whom containers and Codespaces have as their only user, unless it is told to.
lab: install
	$(IN_ROOT) $(BIN)/python -m jupyterlab project.ipynb $(if $(filter 0,$(shell id -u)),--allow-root)

tensorboard: install
	$(IN_ROOT) $(BIN)/python -m tensorboard.main --logdir traces --load_fast=false

docs: install
	$(call with_extra,docs) && $(BIN)/python -m pdoc -d google -o artifacts/docs gpt2opt && echo "open artifacts/docs/gpt2opt.html"

check: install
	$(call with_extra,test) && $(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

# Writes requirements.lock for Linux and Python 3.10 to 3.12, keeping its versions where they still fit; UPGRADE=-U takes the newest ones.
# Of uv's markers only those that tell these Pythons apart are kept.
lock: install
	$(call with_extra,dev) && $(BIN)/uv pip compile -q --universal --python-version 3.10 $(UPGRADE) \
		--extra test --extra bench --extra ui --extra server --extra docs --extra dev --no-header --no-annotate pyproject.toml -o requirements.lock
	$(IN_ROOT) sed -i -E "s/ ;.*(python_full_version (<|>=) '3\.1[012][^']*').*/ ; \1/; /'3\.1[012][^']*'/!s/ ;.*//" requirements.lock
	$(IN_ROOT) sed -i '1i # The exact versions that `make` installs. `make lock` writes this file.' requirements.lock

# Installs one of pyproject.toml's extras unless it is there, in the versions of requirements.lock.
define with_extra
$(IN_ROOT) if [ ! .venv/.ready-$(1) -nt .venv/.ready ]; then \
		$(PIP) -c requirements.lock --no-build-isolation -e ".[$(1)]" && touch .venv/.ready-$(1); \
	fi
endef

# .venv/.ready says that .venv was made here, and by its age whether all is installed; it is not a target: its path may hold spaces.
# A .venv of another Python than the one that was asked for is made anew; one that was not made here is left alone.
install:
	@$(IN_ROOT) set -e; \
	if [ "$(origin PYTHON)" != file ]; then "$(PYTHON)" -c '$(SUPPORTED)'; fi; \
	if [ -e .venv/.ready ] && [ "$(origin PYTHON)" != file ] && \
		[ "$$("$(PYTHON)" -c '$(IDENTITY)')" != "$$($(BIN)/python -c '$(IDENTITY)' 2>&1)" ]; then \
		echo "$(PYTHON) is not the Python of .venv: making it anew"; rm -rf .venv; \
	fi; \
	if [ .venv/.ready -nt requirements.txt ] && [ .venv/.ready -nt requirements.lock ] && [ .venv/.ready -nt pyproject.toml ]; then exit 0; fi; \
	if [ ! -e .venv/.ready ]; then \
		"$(PYTHON)" -c '$(SUPPORTED)'; \
		if [ -e .venv ]; then echo ".venv is there and was not made by this Makefile: move it away, then run make again" >&2; exit 1; fi; \
		mkdir .venv; touch -t 200001010000 .venv/.ready; "$(PYTHON)" -m venv .venv; \
	fi; \
	set -x; \
	$(PIP) -c requirements.lock -r requirements.txt; \
	$(PIP) --no-deps --no-build-isolation -e .; \
	touch .venv/.ready
