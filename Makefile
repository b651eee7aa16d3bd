# The developer's whole interface. `make help` lists it.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test check unit service api e2e cluster cluster-down crds clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet -c constraints.txt uv
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[operator,runtime,dev,examples]'
	@touch $@

crds: $(STAMP)  ## regenerate the CRD and the chart's copy from the typed spec
	$(BIN)/python -m torchmodel_operator.crd crds/torchmodels.yaml charts/torchmodel-operator/templates/crds/torchmodels.yaml
