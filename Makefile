# `make` alone lists the targets. Everything runs in .venv, made on first use.
PYTHON ?= python3
RUN := .venv/bin/dcasgd-repro
ARGS ?= +exp=cifar_dc
# Each is what `dcasgd-repro reproduce` takes: make table1 SCALE=laptop SEEDS=5 JOBS=2
CIFAR := table1 fig2 fig3 fig5 readings staleness delay_laws dana
IMAGENET := table2 fig4
HOW = $(if $(SCALE),scale=$(SCALE)) $(if $(SEEDS),seeds=$(SEEDS)) $(if $(JOBS),jobs=$(JOBS))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup data train test test-gpu gpu-session test-ray cluster lint types $(CIFAR) $(IMAGENET) report tensorboard bench torture golden clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/ready ## make .venv and install the package into it
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v <= (3, 13) and \
	  "make: Python 3.11, 3.12 or 3.13 is needed, this is %d.%d; say which: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

.venv/ray: .venv/ready
	.venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[ray]'
	@touch $@

data: .venv/ready ## fetch CIFAR-10 and verify it (once; about 140 to 170 MB)
	$(RUN) data fetch

train: data ## the main job; other runs: make train ARGS="+exp=cifar_asgd workers=4"
	$(RUN) train $(ARGS)

test: lint types ## lint, types, tests
	.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-gpu: .venv/ready ## the tests that need a CUDA device (not run on one yet)
	DCASGD_GPU_TESTS=cuda .venv/bin/python -m pytest -m gpu tests/fast

gpu-session: .venv/ready ## all that is to be measured on a GPU, unattended; without one: make gpu-session DEVICE=cpu
	.venv/bin/python tests/gpu_session.py --device $(or $(DEVICE),cuda)
test-ray: .venv/ray ## tests that start a Ray of their own (minutes); installs the extra ray
	.venv/bin/python -m pytest -m ray tests/cluster

cluster: .venv/ray ## a real run: a server and 4 workers on a Ray of this machine, one 3 times slower
	$(RUN) train task=synthetic rule=dcasgd_a workers=4 epochs=8 engine=ray schedule=live \
	  'engine.slow={0: 3.0}'

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/ready
	.venv/bin/mypy

table1: ## run Table 1 where it has not been run; also fig2 fig3 fig5 readings staleness delay_laws dana
$(CIFAR): data
	$(RUN) reproduce $@ $(HOW)

table2: ## the ImageNet runs (also fig4): make table2 DATA=folder with train/ and val/
$(IMAGENET): .venv/ready
	@test -n "$(DATA)" || { echo "make $@: say where the images are: make $@ DATA=folder"; exit 2; }
	$(RUN) reproduce $@ $(HOW) data.root=$(DATA)

report: .venv/ready ## tables, figures and pages of results/ anew
	$(RUN) report

tensorboard: .venv/ready ## the dashboards of everything under outputs/
	.venv/bin/tensorboard --logdir outputs

bench: .venv/ready ## what a simulated worker costs here (about 25 minutes); the page in results/bench
	$(RUN) bench all

torture: .venv/ready ## 242 kills of runs, 80 of studies, 70 of fetches and decoders, 3,000 fuzzed inputs (about 35 minutes)
	.venv/bin/python tests/torture.py
	.venv/bin/python tests/torture_studies.py
	.venv/bin/python tests/torture_data.py
	.venv/bin/python tests/fuzz.py

golden: .venv/ready ## write tests/golden anew (look at the difference before you commit it)
	.venv/bin/python tests/test_simulate.py

clean: ## remove what make built, not the runs
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
