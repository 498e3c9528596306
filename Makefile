# Everything a developer types. Needs Python 3.11 or later, make and the network; nothing else.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
  $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
STAMP := $(VENV)/.setup-done
PACKAGES := regions sync services infra
PYTEST_FLAGS ?=
COUNTED = --counts=$(VENV)/$@.counts $(PYTEST_FLAGS)
# Most tests wait for servers; what has bounds in seconds (marked `stack` or `alone`) has the machine to itself.
WORKERS ?= 3
# uv brings certificates of its own; a private certificate authority is among those of the system only.
SYSTEM_CERTS := /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem /etc/ssl/cert.pem
ifneq ($(wildcard $(SYSTEM_CERTS)),)
export UV_SYSTEM_CERTS ?= true
endif
TESTS := test-servers test-deployments test-simulation
PARTS := check $(TESTS)
# What needs processors and no server runs at low priority beside what mostly waits for servers.
PAIRS := test-servers/check test-deployments/test-simulation
ROUNDS ?= 5
.PHONY: help setup demo test $(TESTS) check format coverage mutations bench bench-switcher drills load-setup soak clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with everything in it (seconds when nothing changed)

$(STAMP): requirements/uv.txt requirements/test.txt pyproject.toml $(wildcard infra/servers/etcd/*)
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or later found; install one, or name it: make PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) cannot make virtual environments; install its venv package" >&2; exit 2; }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/uv.txt -r requirements/test.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	$(BIN)/python -m infra.servers prepare
	@touch $@

demo: setup ## Start three regions, tour them, stay until Ctrl-C
	$(BIN)/palaver demo

# A signal comes twice, to the group and once more from make: the second must not end the shell before its trap is done.
test: setup ## Run all checks and all tests but soaks and benchmarks; a part that fails stops no other
	@rm -f $(VENV)/*.part $(VENV)/*.counts; beside=; \
	trap 'test -z "$$beside" || kill -- -$$! 2>/dev/null' EXIT; trap 'trap "" HUP INT TERM; exit 143' HUP INT TERM; \
	run() { \
	  printf '\nmake test: %s begins\n' $$1; began=$$SECONDS; \
	  if $(MAKE) --no-print-directory $$1; then how=passed; else how=FAILED; fi; \
	  counts=$$(cat $(VENV)/$$1.counts 2>/dev/null); \
	  echo "make test: $$1 $$how after $$((SECONDS - began)) s$${counts:+: $$counts}" | tee $(VENV)/$$1.part; \
	}; \
	for pair in $(PAIRS); do \
	  beside=begun; set -m; (renice -n 10 $$BASHPID > /dev/null; run $${pair#*/}) > $(VENV)/beside.log 2>&1 & set +m; \
	  run $${pair%/*}; wait $$!; beside=; cat $(VENV)/beside.log; \
	done; \
	failed=$$(for part in $(PARTS); do grep -q ' passed ' $(VENV)/$$part.part 2>/dev/null || printf ' %s' $$part; done); \
	if test -z "$$failed"; then how=passed; else how=FAILED; fi; \
	printf '\n'; for part in $(PARTS); do cat $(VENV)/$$part.part; done; \
	echo "make test: all $$how after $$SECONDS s"; \
	test -z "$$failed" || { echo "make test: failed:$$failed" >&2; exit 1; }

# Tests start Python some hundred times. Without cached bytecode each start compiles what it imports, and each worker
# compiles all tests.
$(TESTS): export PYTHONDONTWRITEBYTECODE :=

test-servers: setup ## The part of `test` with servers of its own
	$(BIN)/pytest -m "not soak and not bench and not simulation and not stack and not alone" -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(COUNTED)

test-deployments: setup ## The part of `test` with whole deployments and live agents
	$(BIN)/pytest tests/integration tests/regions -m "(stack or alone) and not soak and not bench" $(COUNTED)

test-simulation: setup ## The part of `test` with the failover core under virtual time
	$(BIN)/pytest tests/simulation tests/infra/cli -m "simulation and not soak" -n 2 $(COUNTED)

check: setup ## Check format, lint, types, import contracts, dead code and dependencies
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/lint-imports --no-logo > $(VENV)/lint-imports.log 2>&1 || { cat $(VENV)/lint-imports.log; exit 1; }
	$(BIN)/vulture
	$(BIN)/deptry --no-ansi $(PACKAGES) > $(VENV)/deptry.log 2>&1 || { cat $(VENV)/deptry.log; exit 1; }
	$(BIN)/pyright --warnings > $(VENV)/pyright.log || { cat $(VENV)/pyright.log; exit 1; }

format: setup ## Format the code and apply safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

coverage: setup ## Run the tests with branch coverage
	$(BIN)/pytest -m "not soak and not bench" --cov --cov-report=term-missing $(PYTEST_FLAGS)

mutations: setup ## Change the failover core in one place at a time, and see that a test notices
	$(BIN)/python -m tests.mutants

bench: setup ## Measure, print a table, write bench-results/*.json
	$(BIN)/python -m infra.bench

bench-switcher: setup ## Measure what the switcher costs and bears (about 15 minutes)
	$(BIN)/python -m infra.bench.switcher

drills: setup ## Run every drill once, reports in drill-reports/
	$(BIN)/palaver drill run all

load-setup: ## Make .venv-load with locust in it (for loadtests/)
	test -x .venv-load/bin/python || $(PYTHON) -m venv .venv-load
	.venv-load/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/load.txt

soak: setup ## Run the long tests, then every drill ROUNDS times (hours)
	$(BIN)/pytest -m soak $(PYTEST_FLAGS)
	$(BIN)/palaver drill run all --rounds $(ROUNDS)

clean: ## Remove the virtual environment and caches (data folders stay)
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
