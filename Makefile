# The developer's whole interface; `make help` lists it.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CRD_FILES := crds/torchmodels.yaml charts/torchmodel-operator/templates/crds/torchmodels.yaml

.PHONY: help demo test check unit service hostile fuzz api e2e cluster cluster-down crds proto format clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

# uv resolves and unpacks torch's wheels several times faster than pip, and comes through pip like everything else
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --constraint constraints.txt -e '.[operator,runtime,grpc,tracing,dev,examples]'
	@touch $@

demo: $(STAMP)  ## serve a real image model from its manifest and classify a photograph
	$(BIN)/python examples/demo.py

# file by file, so that servers are shared; in our order, longest first
test: check $(STAMP)  ## everything that needs no root: checks, unit, service, hostile and api tests
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

check: $(STAMP)  ## format, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(STAMP)  ## pure tests
	$(BIN)/python -m pytest tests/unit

service: $(STAMP)  ## the real runtime, fetcher and command as processes
	$(BIN)/python -m pytest tests/service

hostile: $(STAMP)  ## bad input of every kind against real processes
	$(BIN)/python -m pytest tests/hostile

SECONDS_EACH ?= 60
fuzz: $(STAMP)  ## every decoder under a coverage-guided fuzzer, SECONDS_EACH=60 for each
	$(BIN)/python tests/hostile/fuzz/run.py --seconds $(SECONDS_EACH)

api: $(STAMP)  ## the operator against a real kube-apiserver (built from Go modules, or KUBEBUILDER_ASSETS)
	$(BIN)/python -m pytest tests/api

e2e: $(STAMP)  ## a real cluster with real pods; needs root on Linux, Debian's packages and Go
	$(BIN)/python -m pytest tests/e2e

cluster: $(STAMP)  ## start that cluster with the operator in it, to play with
	$(BIN)/python tests/cluster/play.py

cluster-down: $(STAMP)  ## end it, with everything in it
	$(BIN)/python tests/cluster/cluster.py down

crds: $(STAMP)  ## regenerate what is derived: the CRD, the chart's copy, the plain install manifest, the reference pages
	$(BIN)/python -m torchmodel_operator.crd $(CRD_FILES)
	tests/cluster/build_tools.sh helm
	HELM=$$(tests/cluster/build_tools.sh --dir)/helm $(BIN)/python install/render.py

proto: $(STAMP)  ## regenerate the gRPC messages from their .proto files
	$(BIN)/python -m grpc_tools.protoc --proto_path=runtime --python_out=runtime --pyi_out=runtime runtime/torchmodel_runtime/protos/*.proto

format: $(STAMP)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what make made here
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
