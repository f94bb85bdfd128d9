# Everything runs in .venv at the root; `make demo` and `make test` set it up by themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check faults bench clean

demo: .venv/.installed
	$(BIN)/dfkd compare --out runs/demo

test: .venv/.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: .venv/.developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

faults: .venv/.installed
	$(BIN)/python tests/faults.py

bench: .venv/.installed
	$(BIN)/python -m experiments.bench overhead

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[test]'
	touch $@

.venv/.developer: .venv/.installed
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv dist build
