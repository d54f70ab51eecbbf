# The two commands that a fresh machine needs: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2

.PHONY: demo test test-slow test-compilers lint docs

demo: .venv/installed
	$(BIN)/python -m launch.demo --output=demo_output $(if $(AVHUBERT),--avhubert=$(AVHUBERT))

test: .venv/installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

test-slow: .venv/installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow --timeout=3600

# Compiles for TPUs without one; where libtpu cannot be installed, the tests that need it skip.
test-compilers: .venv/installed
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[aot]"
	$(BIN)/python -m pytest -m "not slow" tests/jax_avh/test_compile_check.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error
	git ls-files '*.py' '*.md' '*.jinja' '*.js' '*.cff' | xargs $(BIN)/codespell
	! git grep -nIiEf docs/avoid.txt -- '*.py' '*.md' '*.jinja' '*.js'  # phrases that read as translated

# The documentation, into site/; a broken link is an error.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 TQDM_DISABLE=1 $(BIN)/python -m mkdocs build --strict

# torch first and by its pin, so that no other package's requirement picks another build of it.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[extract,ray,jax,dev,docs]"
	touch $@
