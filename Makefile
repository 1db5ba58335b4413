# Each target makes .venv from the lock when it is missing or stale; nothing else is needed than Python 3.11 and make.
PYTHON ?= python3.11
PORT ?= 3000
BIN := .venv/bin
PAGES := README.md CONTRIBUTING.md LICENSE params.yaml docs studies serving/sites deploy
STAMP := .venv/.installed
.DELETE_ON_ERROR:
.PHONY: install demo test test-slow lint site reference audit serve lock clean

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "1 of 3: a virtual environment in .venv"
	@$(PYTHON) -m venv --clear .venv
	@echo "2 of 3: the packages of requirements.lock, some gigabytes; this takes minutes"
	@$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements.lock
	@echo "3 of 3: wbc itself"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@echo "done: \`source .venv/bin/activate\`, then \`wbc --help\`"
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/wbc demo

test: $(STAMP)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow -n 0 --timeout 3600

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) --no-print-directory site

# The documents as pages, in build/site. README, docs and studies keep their places, so that every link between them is checked.
site: $(STAMP)
	rm -rf build/pages
	mkdir -p build/pages
	cp -r --parents $(PAGES) build/pages
	$(BIN)/mkdocs build --strict

# docs/reference.md, from the commands' help and from params.yaml.
reference: $(STAMP)
	$(BIN)/python docs/reference.py

# Known faults of what the lock pins; asks the vulnerability service of PyPI.
audit: $(STAMP)
	$(BIN)/uv tool run pip-audit --requirement requirements.lock --no-deps --disable-pip

serve: $(STAMP)
	$(BIN)/wbc serve --port $(PORT)

# uv resolves; everybody installs the result with plain pip. The packaged service has a part of it, in the same versions.
lock: $(STAMP)
	$(BIN)/uv pip compile pyproject.toml --extra dev --python-version 3.11 --no-header --quiet --output-file requirements.lock
	$(BIN)/uv pip compile --group serving --constraint requirements.lock --python-version 3.11 --no-header --no-annotate --quiet \
	  --output-file serving/requirements.lock

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
