# Two commands on a fresh machine, with Python 3.11 or newer and make: `make demo` and `make test`.
# All that is made here stays in this folder (.venv, caches, state); only pip and uv keep caches of their own elsewhere.

VENV := .venv
BIN := $(VENV)/bin
COMPAT := .compat
# Inside the venv, so that it goes when the venv goes.
STAMP := $(VENV)/.installed
ARGS ?=
MINUTES ?= 20
REPEAT ?= 3
# Most tests wait for processes that they start, so three files at a time suit two cores; SPREAD= runs them in a row.
SPREAD ?= -n 3 --dist loadfile

# Tests start hundreds of processes; each compiles the whole package where the shell forbids to keep what was compiled.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install demo flower test test-fast chaos bench report-sample report-schema audit fuzz test-compat docs lint lock wheel clean distclean

help:  ## Show this
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 20
	@echo '  ARGS="..." goes to the command: make demo ARGS="--seed 7", make test ARGS="-k lanes -x"'

install: $(STAMP)  ## Make .venv with everything in requirements.lock, and this project in it

demo: $(STAMP)  ## 600 calls against a provider with a hidden limit, in a minute
	@MAISD_STATE_DIR="$${MAISD_STATE_DIR:-$(CURDIR)/state}" $(BIN)/ratelimit-worker demo $(ARGS)

flower: $(STAMP)  ## Flower on the broker of MAISD_REDIS_URL, with the page "Rate limit" (http://127.0.0.1:5555)
	@$(BIN)/ratelimit-worker flower $(ARGS)

test: $(STAMP)  ## Run the tests; property tests try fixed examples
	@$(PYTEST) -q $(SPREAD) $(ARGS)

# What needs no worker process and no long simulation, for every save.
test-fast: $(STAMP)  ## Tests of modules and of scripts alone
	@$(PYTEST) -q -n 2 -m "not worker and not long" tests/unit tests/lua $(ARGS)

# The table goes into docs/promises.md only when all faults were staged; ONLY="redis-full worker-killed" prints its own.
chaos: $(STAMP)  ## Stage every fault REPEAT=3 times, judge by the provider's log, and write docs/promises.md; ONLY=name
	@$(BIN)/python -m tests.chaos --repeat $(REPEAT) $(if $(ONLY),--only $(ONLY),--write docs/promises.md) $(ARGS)

# By the clock, so nothing else should run meanwhile; over an hour. ONLY="cleanup in_process" prints its own, and
# writes nothing.
bench: $(STAMP)  ## Run every benchmark that has a goal, and write benchmarks/RESULTS.md; exit 1: a goal was missed
	@$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(ARGS)

report-sample: $(STAMP)  ## The report of a simulated day, as report-sample.html
	@$(BIN)/python -m benchmarks.report_day $(ARGS)

# After a change of what `analytics` writes as JSON.
report-schema: $(STAMP)  ## Write docs/analytics.schema.json
	@$(BIN)/python -m ratelimit_worker.reports.schema > docs/analytics.schema.json

audit: $(STAMP)  ## Known vulnerabilities of what requirements.lock pins; needs the network
	@$(BIN)/python -m tests.audit

# For as long as told, or one round of a seed that has failed: make fuzz SEED=1234 ARGS="-k lanes".
fuzz: $(STAMP)  ## Run the property tests with fresh seeds, for MINUTES=20; or again with SEED=N
	@$(BIN)/python -m tests.fuzz --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

# Each set of SDKs that resolves together has an environment of its own, and the tests of its name. They use this
# folder's product as it is, uninstalled; the conftest of the other tests needs servers that are not there. Servers of
# others are processes from environments of theirs, for tests that run in this one.
SDKS := $(patsubst tests/compat/requirements-%.txt,$(COMPAT)/%/.installed,$(wildcard tests/compat/requirements-*.txt))
SERVERS := $(patsubst tests/compat/servers/requirements-%.txt,$(COMPAT)/%/.installed,$(wildcard tests/compat/servers/requirements-*.txt))
AIMOCK := $(COMPAT)/aimock/.installed

test-compat: $(SDKS) $(SERVERS) $(AIMOCK) docs  ## What real SDKs raise and real gateways send, in environments of their own
	@set -e; for stamp in $(SDKS); do set=`basename $$(dirname $$stamp)`; \
		$(COMPAT)/$$set/bin/python -m pytest -q --confcutdir=tests/compat -p no:cacheprovider --disable-warnings \
			tests/compat/test_$$set*.py $(ARGS); \
	done
	@$(PYTEST) -q tests/compat/servers $(ARGS)

docs: $(COMPAT)/docs/.installed  ## The documents as a site, into .site/html; fails at a link that leads nowhere
	@$(BIN)/python docs/site/pages.py .site/pages
	@NO_MKDOCS_2_WARNING=1 $(COMPAT)/docs/bin/mkdocs build --strict --clean -f docs/site/mkdocs.yml $(ARGS)
	@echo "Open .site/html/index.html"

# Nothing of a package's own is run to install it.
$(AIMOCK): tests/compat/servers/package.json tests/compat/servers/package-lock.json
	@set -e; rm -rf $(COMPAT)/aimock; mkdir -p $(COMPAT)/aimock; \
	if npm --version >/dev/null 2>&1; then \
		echo "Installing $<"; cp $^ $(COMPAT)/aimock; \
		npm ci --prefix $(COMPAT)/aimock --ignore-scripts --no-audit --no-fund --loglevel=error; \
		touch $@; \
	else echo "npm is not there: what aimock sends is not tested" >&2; fi

define environment
	@set -e; rm -rf $(COMPAT)/$*; echo "Installing $<"; \
	if uv --version >/dev/null 2>&1; then \
		uv venv --quiet --python $(BIN)/python $(COMPAT)/$*; \
		uv pip install --quiet --python $(COMPAT)/$*/bin/python -r $<; \
	else \
		$(BIN)/python -m venv $(COMPAT)/$*; \
		$(COMPAT)/$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<; \
	fi; \
	touch $@
endef

$(COMPAT)/%/.installed: tests/compat/requirements-%.txt | $(STAMP)
	$(environment)

$(COMPAT)/%/.installed: docs/site/requirements-%.txt | $(STAMP)
	$(environment)

$(COMPAT)/%/.installed: tests/compat/servers/requirements-%.txt | $(STAMP)
	$(environment)

lint: $(STAMP)  ## Style, types, and which floor may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# editables is what hatchling needs beside itself for an editable install; nothing else names it.
lock:  ## Write requirements.lock from pyproject.toml (needs uv; ARGS=--upgrade for new versions)
	@uv --version >/dev/null 2>&1 || { echo "make lock needs uv (pip install uv)" >&2; exit 1; }
	echo editables | uv pip compile --quiet --universal --python-version 3.11 --all-extras --group dev \
		--custom-compile-command "make lock" --no-emit-index-url --no-emit-find-links \
		pyproject.toml - -o requirements.lock $(ARGS)
	for set in tests/compat/*.in tests/compat/servers/*.in docs/site/*.in; do \
		uv pip compile --quiet --universal --python-version 3.11 --custom-compile-command "make lock" \
			--no-emit-index-url --no-emit-find-links --no-annotate \
			$$set -o `dirname $$set`/requirements-`basename $$set .in`.txt $(ARGS); \
	done

wheel: $(STAMP)  ## Build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation --outdir dist $(ARGS)

clean:  ## Remove what was built and cached; keeps .venv and state/
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -not -path './$(COMPAT)/*' -prune -exec rm -rf {} +

distclean: clean  ## Remove .venv and the other environments too
	rm -rf $(VENV) $(COMPAT) .race .site

# A python3.x on PATH need not run (pyenv's shims answer "command not found"), and Debian's comes without venv unless
# python3-venv is installed: so each is tried. uv needs no venv module. An unfinished install leaves no stamp.
# The project itself is installed editable, with the build backend that the lock pins.
$(STAMP): pyproject.toml requirements.lock
	@set -e; \
	uv=; if uv --version >/dev/null 2>&1; then uv=yes; fi; \
	if ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
		old=; bare=; found=; \
		for name in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
			$$name -c '' >/dev/null 2>&1 || continue; \
			if ! $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then old=$$name; \
			elif [ -z "$$uv" ] && ! $$name -c 'import ensurepip, venv' 2>/dev/null; then bare=$$name; \
			else found=$$name; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			if [ -n "$$bare" ]; then echo "$$bare has no venv module: install it (Debian: apt-get install python3-venv), or uv" >&2; \
			elif [ -n "$$old" ]; then echo "needs Python 3.11 or newer; $$old is `$$old -V 2>&1`: install one, or say make PYTHON=/path/to/python3" >&2; \
			else echo "needs Python 3.11 or newer, and there is none on PATH: install one, or say make PYTHON=/path/to/python3" >&2; fi; \
			exit 1; \
		fi; \
		echo "Making $(VENV) with $$($$found -V)"; \
		rm -rf $(VENV); \
		if [ -n "$$uv" ]; then uv venv --quiet --python "`$$found -c 'import sys; print(sys.executable)'`" $(VENV); \
		else $$found -m venv $(VENV); fi; \
	fi; \
	echo "Installing requirements.lock"; \
	if [ -n "$$uv" ]; then \
		uv pip install --quiet --python $(BIN)/python -r requirements.lock; \
		uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .; \
	else \
		$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	fi; \
	touch $(STAMP)
