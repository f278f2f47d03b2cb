# Everything starts here: `make demo` and `make test` do the set-up first when it is missing.
PYTHON ?= python3
UV_VERSION := 0.13.8
UV := .venv/bin/uv
SEED ?= 0
SMOKE ?=
OUTPUT ?= outputs/miniature$(if $(SMOKE),-smoke)

.PHONY: setup demo test test-slow lint lock clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	test -x $(UV) || { $(PYTHON) -m venv .venv && .venv/bin/pip install --quiet uv==$(UV_VERSION); }
	$(UV) pip install --quiet --compile-bytecode --python .venv/bin/python -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	PATH="$(CURDIR)/.venv/bin:$$PATH" SEED=$(SEED) SMOKE=$(SMOKE) OUTPUT=$(OUTPUT) bash recipes/miniature/run.sh

test: setup
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q

test-slow: setup
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -m slow --timeout 1800

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

lock:
	test -x $(UV) || { $(PYTHON) -m venv .venv && .venv/bin/pip install --quiet uv==$(UV_VERSION); }
	$(UV) pip compile --quiet pyproject.toml --extra dev --extra vllm --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 --no-emit-index-url --no-annotate --no-header -o constraints.txt

clean:
	rm -rf .venv outputs .mypy_cache .pytest_cache .ruff_cache *.egg-info
