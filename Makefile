# Everything that a user or a developer types; `make` alone lists it. Needs Python 3.11 or newer with pip; all else is fetched.

PYTHON ?= python3
UV_DIR := $(CURDIR)/build/uv
# The dev cluster looks for uv on PATH too: it fetches Go with it.
export PATH := $(UV_DIR)/bin:$(PATH)
RUN := uv run --no-sync
# Python keeps what it has compiled: without that each process that imports torch takes 20 s longer.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help try demo demo-down test test-fast test-exhaustive test-all chaos lint types check generate bench bench-trainer sync uv

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

try: uv ## a first taste without a cluster: train an adapter on this machine, and see it answer beside its base
	@uv sync --locked --inexact --no-dev --extra trainer --extra demo
	@$(RUN) python -m devcluster.tryout

demo: sync ## from one YAML to a tuned adapter that answers in vLLM (needs root)
	@$(RUN) python -m devcluster.demo up

demo-down: sync ## take away everything that the demo made
	@$(RUN) python -m devcluster.demo down

test: check ## all checks, then all tests that a change must pass (the node's need root)
	$(RUN) python -m tools.run_tests

test-fast: sync ## the tests without torch and without a cluster: under a minute
	$(RUN) python -m tools.run_tests --tiers unit

chaos: sync ## inject faults: kills, lost writes, broken watches, frozen processes; print what was injected and what happened
	$(RUN) python -m tools.chaos $(ARGS)

test-exhaustive: sync ## the rows of large matrices that `make test` leaves out; writes the result to docs/tests.md
	$(RUN) python -m tools.run_tests --exhaustive $(ARGS)

test-all: test test-exhaustive ## all tests

check: lint types ## the checks that run nothing: format, lint, types, import rules, generated files
	$(RUN) lint-imports
	$(RUN) python -m tools.generate --check

lint: sync ## format and lint
	$(RUN) ruff format --check .
	$(RUN) ruff check .

types: sync ## type check
	$(RUN) mypy

generate: sync ## write what is generated: CRDs, the chart's values and schema, the reference pages
	$(RUN) python -m tools.generate

bench: sync ## time the operator on a control plane with fake nodes
	$(RUN) python -m bench

bench-trainer: sync ## time the trainer against bare TRL and against a script that pads (about twenty minutes)
	$(RUN) python -m bench.trainer

sync: uv
	@uv sync --quiet --locked --all-extras

# --target works where pip may not touch the system's own Python (Debian's PEP 668) and where there is no venv module.
uv:
	@command -v uv >/dev/null || $(PYTHON) -m pip install --quiet --disable-pip-version-check --target $(UV_DIR) uv
