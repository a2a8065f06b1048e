# make demo | test | test-fast | test-external | check | docs | bench | lock
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= demo-out
# two test processes of one thread each: two of two threads would fight over two cores; the longest files begin first (tests/conftest.py)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast test-external check docs bench lock clean

# Everything from the lock file, hashes checked; torch apart, since its CPU and CUDA builds differ and carry no hash there.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.lock)
	grep -v '^torch==' requirements.lock > $(VENV)/hashed.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(VENV)/hashed.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(READY)

demo: $(READY)
	$(BIN)/python examples/demo.py --out $(OUT)

test: check $(READY)
	$(PYTEST) -m "not external" --durations=15

test-fast: $(READY)
	$(PYTEST) -m "not external and not slow"

# Tests that need a browser, Ray, Roboflow's client or a logger. What cannot be installed here is skipped by its test, with the reason.
test-external: $(READY)
	@test -d examples/web/node_modules || (cd examples/web && npm ci --silent) || echo "npm is missing or failed"
	@test -x "$${RAPIDETR_CHROMIUM:-/usr/bin/chromium}" || { test "$$(id -u)" = 0 && apt-get update -qq \
	&& apt-get install -y -qq --no-install-recommends chromium > /dev/null; } || echo "no chromium"
	@test -f .venv-roboflow/.ready || PYTHON=$(PYTHON) bash tools/roboflow_env.sh .venv-roboflow || echo "no Roboflow client"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m external --durations=10

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a folder of pages, site/; a broken link is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(READY)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/make_results.py

# Pin the newest versions that pyproject.toml allows, with the hashes of every platform; torch without.
lock: $(READY)
	$(BIN)/python tools/lock.py

clean:
	rm -rf $(VENV) $(OUT) dist build .pytest_cache .mypy_cache .ruff_cache
