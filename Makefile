# Every target works on a fresh machine with Python >= 3.11 and make: the environment is made on first use.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo check format test test-slow simulate model chaos bench lock crds manifest manifest-check sbom cluster-up cluster-down cluster-status e2e clean

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "VecCluster needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	@echo "Setting up $(VENV) (once; some 200 MB of hash-pinned packages)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

setup: $(STAMP) ## make the environment (.venv); the other targets do it by themselves

demo: $(STAMP) ## a three-node cluster on this machine answers questions about 12,000 real vectors
	@$(BIN)/veccluster demo

check: $(STAMP) ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## rewrite the code as `make check` wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: check ## everything that must pass before a change lands, under five minutes
	$(BIN)/pytest -m "not slow and not e2e" -n 2 --dist loadfile

test-slow: $(STAMP) ## the tests that take minutes
	$(BIN)/pytest -m slow

simulate: $(STAMP) ## replication on a simulated clock, network, disk and etcd; SEEDS=10000 FROM=0 ATOMIC=1 MUTATION=name TRACE=1
	@PYTHONPATH=tests $(BIN)/python -m simulation --seeds $(or $(SEEDS),1000) --from $(or $(FROM),0) \
	    $(if $(ATOMIC),--atomic) $(if $(MUTATION),--mutation $(MUTATION)) $(if $(TRACE),--trace)

model: $(STAMP) ## the rules of replication as a model: all its states within bounds, and the simulation beside it; STATES= WALKS= SEEDS=
	@PYTHONPATH=tests $(BIN)/python -m model $(if $(STATES),--states $(STATES)) $(if $(WALKS),--walks $(WALKS)) \
	    $(if $(SEEDS),--seeds $(SEEDS))

chaos: $(STAMP) ## real nodes and a real etcd under faults; NEMESIS=mixed CYCLES=10 SEED= OPERATIONS= DURATION= FACTOR=3 REPORT=1
	@PYTHONPATH=tests $(BIN)/python -m chaos $(if $(NEMESIS),--nemesis $(NEMESIS)) $(if $(CYCLES),--cycles $(CYCLES)) \
	    $(if $(SEED),--seed $(SEED)) $(if $(OPERATIONS),--operations $(OPERATIONS)) $(if $(DURATION),--duration $(DURATION)) \
	    $(if $(FACTOR),--factor $(FACTOR)) $(if $(REPORT),--report) $(ARGS)

bench: $(STAMP) ## recall, ingest rate, queries a second, latency and memory, as a table and as JSON
	$(BIN)/python -m bench

LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --no-emit-find-links --no-header

lock: $(STAMP) ## resolve pyproject.toml into hash-pinned requirements/*.txt; UPGRADE=--upgrade takes newer versions
	$(BIN)/$(LOCK) $(UPGRADE) --extra node --extra operator --extra cli --extra dev pyproject.toml -o requirements/dev.txt
	$(BIN)/$(LOCK) --constraints requirements/dev.txt --extra node pyproject.toml -o requirements/node.txt
	$(BIN)/$(LOCK) --constraints requirements/dev.txt --extra operator \
	    --no-emit-package numpy --no-emit-package pyarrow pyproject.toml -o requirements/operator.txt
	@echo 'hatchling>=1.27' | $(BIN)/$(LOCK) --constraints requirements/dev.txt - -o requirements/build.txt

crds: $(STAMP) ## write crds/, the chart's copies of it and docs/reference.md from the model
	$(BIN)/python -m veccluster.model.crd crds charts/veccluster/files/crds
	$(BIN)/python -m veccluster.model.reference docs/reference.md

manifest: $(STAMP) ## write deploy/veccluster.yaml from the chart
	$(BIN)/python deploy/render.py

manifest-check: $(STAMP) ## whether deploy/veccluster.yaml is what the chart says
	$(BIN)/python deploy/render.py --check

sbom: $(STAMP) ## dist/sbom-*.cdx.json: what the images are made of, as CycloneDX
	@mkdir -p dist
	@for image in node operator; do \
	    $(BIN)/python -W ignore -m cyclonedx_py requirements --pyproject pyproject.toml --output-reproducible --of JSON \
	        -o dist/sbom-$$image.cdx.json requirements/$$image.txt && echo dist/sbom-$$image.cdx.json || exit 1; \
	done

cluster-up: $(STAMP) ## a real three-node Kubernetes on this machine, left running (needs root, or Docker and kind)
	@$(BIN)/python -m e2e.cluster up

cluster-down: $(STAMP) ## remove it without a trace
	@$(BIN)/python -m e2e.cluster down

cluster-status: $(STAMP) ## whether it is healthy, and where its kubeconfig is
	@$(BIN)/python -m e2e.cluster status

e2e: $(STAMP) ## the tests that need root: real nodes under faults, and a real Kubernetes; ARGS="-k name" chooses some of the latter
	@$(BIN)/python -m e2e.cluster prepare
	$(if $(ARGS),,$(BIN)/pytest tests -m "e2e and not slow")
	$(BIN)/pytest e2e --timeout 600 $(ARGS)

clean: ## remove the environment and every cache
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
