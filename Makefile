# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Extra arguments of the command that a target runs, for example: make run ARGS="--port 9000"
ARGS ?=

.PHONY: help run install test test-image lint format docs bench bench-cache bench-models fuzz gpu-check gpu-train wheels lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

run: $(VENV)/.run ## start the service with the checkpoint in this repository
	@exec $(BIN)/titok serve $(ARGS)

install: $(VENV)/.dev ## create .venv with everything, tests and training included

test: $(VENV)/.dev ## run the tests; ARGS goes to pytest, for example ARGS="tests/e2e -k mix"
	@requirements/programs
	@# Threads that wait for each other do not spin for long, or they keep the cores from the servers under test.
	GOMP_SPINCOUNT=20000 $(BIN)/python -m pytest --numprocesses=2 --dist=loadgroup --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.dev ## ruff, strict mypy, and the import contracts of pyproject.toml
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev ## write the pages that are made from code; RUNBOOK=https://... sets the address of docs/operations.md in them
	$(if $(RUNBOOK),$(BIN)/python deploy/prometheus/runbook.py $(RUNBOOK))
	$(BIN)/python -m docs.settings_table > docs/configuration.md
	$(BIN)/python deploy/grafana/dashboards.py
	$(BIN)/python deploy/kubernetes/prometheus_rule.py

test-image: $(VENV)/.dev ## build the image and run it, docker-compose.yml and the Kubernetes Deployment with podman; needs root
	@requirements/programs --image
	$(BIN)/python -m pytest --timeout=1800 tests/image/check_*.py $(ARGS)

bench: $(VENV)/.bench ## measure the engine and the service (nothing timed decides a test)
	$(BIN)/python -m tests.benchmarks.engine
	$(BIN)/python -m tests.benchmarks.service
	$(BIN)/python -m tests.benchmarks.overload

bench-cache: $(VENV)/.bench ## measure the cache, with Redis whole and broken
	$(BIN)/python -m tests.benchmarks.cache

bench-models: $(VENV)/.dev ## measure the bare models
	$(BIN)/python -m tests.benchmarks.models
	$(BIN)/python -m tests.benchmarks.batch_invariance

fuzz: $(VENV)/.dev ## 50,000 damaged images, hostile requests, and 5,000 requests made from the OpenAPI document
	$(BIN)/python -m tests.fuzz $(ARGS)

# Installs nothing, so that it runs without a network: in .venv if there is one, else in whatever Python has torch.
gpu-check: ## check and measure a CUDA device, in less than eight minutes
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m tests.benchmarks.gpu $(ARGS)

gpu-train: ## train the shipped checkpoints on a CUDA device for 25 minutes, rerun to resume: ARGS="--data photographs"
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m tests.benchmarks.gpu_train $(ARGS)

wheels: $(VENV)/.dev ## build the distributions titok-service and titok-client into dist/
	$(BIN)/uv build --out-dir dist .
	$(BIN)/uv build --out-dir dist service/client

# Only the CUDA builds of torch need its CUDA packages: cuda.lock constrains them; nvidia-ml-py is Python.
LOCK = $(BIN)/uv pip compile -q --universal --python-version 3.11 --no-annotate --no-header -c requirements/constraints.txt
CUDA = '^(nvidia-[^m]|cuda-|triton)'
WITHOUT_CUDA = grep -vE $(CUDA)
RUN = --extra heic --extra otel --extra bulk --extra train --extra evaluate --extra export --extra openvino
lock: $(VENV)/.dev ## resolve the locked versions anew: for the image, the titok command, the tests, the benchmarks
	$(LOCK) pyproject.toml --extra heic --extra otel --extra openvino | $(WITHOUT_CUDA) > requirements/image.lock
	$(LOCK) pyproject.toml | grep -E $(CUDA) > requirements/cuda.lock
	$(LOCK) pyproject.toml $(RUN) | $(WITHOUT_CUDA) > requirements/run.lock
	$(LOCK) pyproject.toml $(RUN) --extra ray --group dev | $(WITHOUT_CUDA) > requirements/dev.lock
	$(LOCK) pyproject.toml $(RUN) --extra ray --group dev --group bench | $(WITHOUT_CUDA) > requirements/bench.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || requirements/programs --venv
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements/run.lock pyproject.toml | $(BIN)/python
	PYTHON=$(BIN)/python requirements/install run
	@touch $@

$(VENV)/.dev: requirements/dev.lock pyproject.toml | $(BIN)/python
	PYTHON=$(BIN)/python requirements/install dev
	@touch $@ $(VENV)/.run

$(VENV)/.bench: requirements/bench.lock pyproject.toml | $(BIN)/python
	PYTHON=$(BIN)/python requirements/install bench
	@touch $@ $(VENV)/.dev $(VENV)/.run
