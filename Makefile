# Orderstream. `make` lists what there is to do; `make run` starts everything.

SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
PY := $(VENV)/bin/python
SERVICES := checkout email analytics warehouse
SOURCES := shared services deploy tests

# services/email would shadow the standard library's email package if a script's own folder came first on
# the path, so it never does; the repository root is named instead.
export PYTHONSAFEPATH := 1
export PYTHONPATH := $(CURDIR)
# Compiling everything anew at every start would cost more than all the rest of it.
unexport PYTHONDONTWRITEBYTECODE

# Changes when the lock changes or the working copy moves (scripts in .venv carry its path).
STAMP = $$(cksum < requirements.lock) $(CURDIR)
DEPTRY = $(PY) -m deptry --no-ansi
LOCKED = $(PY) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  \033[36m%-13s\033[0m %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: ## Create .venv and install what the lock names (done by every other target)
	@stamp="$(STAMP)"; \
	if [ -x $(PY) ] && [ "$$(cat $(VENV)/installed 2>/dev/null)" = "$$stamp" ]; then exit 0; fi; \
	for python in python3.14 python3.13 python3.12 python3.11 python3 python; do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			exec $$python -m deploy.local.install $(VENV) "$$stamp"; \
		fi; \
	done; \
	echo "Orderstream needs Python 3.11 or newer and found none on PATH: install one (apt install python3)." >&2; \
	exit 1

.PHONY: run
run: install ## Start everything in the foreground; Ctrl-C stops it
	@exec $(PY) -m deploy.local run

.PHONY: up
up: install ## Start everything in the background, return when all are ready
	@$(PY) -m deploy.local up

.PHONY: down
down: install ## Stop what `up` or `run` started; state and data are kept
	@$(PY) -m deploy.local down

.PHONY: reset
reset: install ## Stop, and delete all local data
	@$(PY) -m deploy.local reset

.PHONY: status
status: install ## Show what runs where
	@$(PY) -m deploy.local status

.PHONY: demo
demo: install ## Put one order through the running platform and show what happens to it
	@$(PY) -m deploy.local demo

# Without an address of your own it is the local platform, when that runs.
.PHONY: orderctl
orderctl: install ## Dead letters, pause, subscriptions, keys, verify; ARGS="deliveries list email"
	@env="$${RUN_DIR:-.run}/env"; \
	if [ -z "$$CHECKOUT_DATABASE_URL$$CHECKOUT_URL$$EMAIL_URL$$ANALYTICS_URL$$WAREHOUSE_URL" ] && [ -f "$$env" ]; then \
		. "$$(cd "$$(dirname "$$env")" && pwd)/env"; export CHECKOUT_DATABASE_URL="$${POSTGRES_URL%/*}/checkout"; \
		export CHECKOUT_URL EMAIL_URL ANALYTICS_URL WAREHOUSE_URL OPS_KEY CHECKOUT_PAYMENTS_URL="$$PAYMENTS_URL"; \
		for name in EMAIL ANALYTICS WAREHOUSE; do \
			export "$${name}_DATABASE_URL=$${POSTGRES_URL%/*}/$$(echo $$name | tr A-Z a-z)"; \
		done; \
		secrets="$$(dirname "$$env")/secrets.json"; \
		export CHECKOUT_PAYMENTS_SECRET_KEY="$$(sed -n 's/.*"payments_key": "\(.*\)".*/\1/p' "$$secrets")"; \
	fi; \
	exec $(PY) -m deploy.orderctl $(ARGS)

.PHONY: test
test: install ## Run the whole test suite; ARGS="-k idempotency -x" is passed on, and then nothing runs side by side
ifdef ARGS
	@$(PY) -m pytest $(ARGS)
else
	@$(PY) -m pytest --quiet --numprocesses 2 --dist loadfile -m "not alone and not slow"
	@$(PY) -m pytest -m "alone and not slow"
endif

.PHONY: test-slow
test-slow: install ## Run the tests that take too long for `make test`
	@$(PY) -m pytest -m slow --override-ini timeout=600 $(ARGS)

.PHONY: test-matrix
test-matrix: install ## Run the tests of the bus over every Redis and Postgres that is supported; ARGS="redis-6.2 pgbouncer"
	@$(PY) -m tests.matrix $(ARGS)

.PHONY: bench
bench: install ## Measure this machine (two and a half minutes); prints a table, writes .run/bench/result.json
	@$(PY) -m tests.bench $(ARGS)

.PHONY: chaos
chaos: install ## Break everything around the platform under load, then look what was lost; SEED=7 SECONDS=20 SEEDS=50
	@$(PY) -m tests.chaos --seed $(or $(SEED),1) --seconds $(or $(SECONDS),20) --seeds $(or $(SEEDS),1) $(ARGS)

.PHONY: check
check: lint types imports dependencies test ## Everything that CI checks
	@$(MAKE) chaos SEED=23 SECONDS=12

.PHONY: lint
lint: install ## Look for mistakes and unformatted code
	@$(PY) -m ruff check --quiet $(SOURCES)
	@$(PY) -m ruff format --quiet --check $(SOURCES) || { echo "Not formatted: run make format." >&2; exit 1; }

.PHONY: format
format: install ## Format the code, fix what can be fixed by itself
	@$(PY) -m ruff check --quiet --fix-only $(SOURCES)
	@$(PY) -m ruff format --quiet $(SOURCES)

.PHONY: types
types: install ## Check the types
	@$(PY) -m mypy

.PHONY: imports
imports: install ## Check who may import whom
	@$(VENV)/bin/lint-imports --no-logo

.PHONY: dependencies
dependencies: install ## Check that each service declares what it imports, and nothing else
	@for name in $(SERVICES); do \
		$(DEPTRY) services/$$name shared --requirements-files services/$$name/requirements.in || exit 1; \
	done
	@# Plugins, tools and servers are used without an import, so here only what is missing counts.
	@$(DEPTRY) $(SOURCES) --requirements-files requirements.in --ignore DEP002

.PHONY: contracts
contracts: install ## Write the schemas and the AsyncAPI document anew; refuses incompatible changes
	@$(PY) -m shared.contracts

.PHONY: lock
lock: install ## Write the lock files anew; ARGS=--upgrade raises the versions
	@$(LOCKED) $(ARGS) --output-file requirements.lock requirements.in
	@for name in $(SERVICES); do \
		$(LOCKED) --upgrade --constraint requirements.lock \
			--output-file services/$$name/requirements.lock services/$$name/requirements.in || exit 1; \
	done

.PHONY: clean
clean: ## Delete .venv and caches (local data stays: that is `make reset`)
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage htmlcov
	@find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
