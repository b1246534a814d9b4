# `make help` lists the targets. The environment is built at need (tools/setup_env.sh).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The interpreter's environment, taken anew for each target.
ENV = env="$$(tools/setup_env.sh)"
PYTEST = "$${env}/bin/python" -m pytest
SHELL_FILES = $(shell git ls-files '*.sh' .ci/run)

# Clips for `make evidence`: audio/ and a table, see benchmarks/evidence.py.
DATA ?= $(SSLAM_REAL_AUDIO)/us8k-mini

# What must be free of type errors: the core, checkpoint and inference.
TYPED = espnet2_sslam/*.py espnet2_sslam/checkpoint espnet2_sslam/inference
# Tests that need no host: those of the core, of its files and of its commands.
LIGHT = $(shell cat tests/light.txt)

.PHONY: help env demo test test-fast test-py311 test-light newest hosts fuzz soak evidence \
	bench gpu docs lint clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

env: ## build, repair or find the environment
	@tools/setup_env.sh

demo: ## environment, then the whole recipe on the embedded corpus (6 to 10 minutes on 2 cores)
	@$(ENV); cd egs2/sslam; ./run.sh --stage 1 --stop_stage 7

test: ## environment, then all tests
	@$(ENV); $(PYTEST) --durations 15 --cov --cov-report term:skip-covered $(PYTEST_ARGS)

test-fast: ## environment, then the tests without the slow ones
	@$(ENV); $(PYTEST) -m "not slow" --durations 10 $(PYTEST_ARGS)

test-py311: ## the same with Python 3.11 and ESPnet 202511, the second supported stack
	@env="$$(tools/setup_env.sh --python 3.11)"; $(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-light: ## the core alone: torch of the day, no ESPnet, no other host
	@env="$$(tools/setup_env.sh --stack light)"; $(PYTEST) -m "not slow" $(LIGHT) $(PYTEST_ARGS)

newest: ## the fast tests with the newest versions that setup.py allows (what breaks next?)
	@env="$$(tools/setup_env.sh --stack newest)"; \
	"$${env}/bin/python" -m pip list --format freeze | \
		grep -iE '^(torch|torchaudio|espnet|s3prl|transformers|numpy|huggingface)'; \
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

hosts: ## the hosts' own tests and recipes with SSLAM in them, into docs/hosts.md (half an hour)
	@$(ENV); OMP_NUM_THREADS=1 "$${env}/bin/python" -m tests.host_report --write $(HOSTS_ARGS)

fuzz: ## 10,000 mutated files through every reader: no traceback, no code run (minutes)
	@$(ENV); "$${env}/bin/python" -m tests.fuzz --inputs 10000 $(FUZZ_ARGS)

soak: ## 10,000 updates under hundreds of faults, into docs/reliability.md (half an hour)
	@$(ENV); OMP_NUM_THREADS=1 "$${env}/bin/python" -m tests.soak --report docs/reliability.md $(SOAK_ARGS)

evidence: ## does phase 2 help? benchmarks/evidence.yaml on DATA (about 3 hours on 2 cores)
	@$(ENV); "$${env}/bin/python" benchmarks/evidence.py --data "$(DATA)" $(EVIDENCE_ARGS)

bench: ## steps, inference, data, checkpoints on this machine, into benchmarks/BENCH.md (10 minutes)
	@$(ENV); PYTHONPATH="$${PWD}" "$${env}/bin/python" -m benchmarks.bench $(BENCH_ARGS)

gpu: ## on a machine with a GPU: tests, tables and speed, into benchmarks/GPU.md (9 minutes)
	@if [ -n "$${PYTHON:-}" ] && [ -d .whl ]; then \
		site="$$(mktemp -d)"; trap 'rm -rf "$${site}"' EXIT; \
		"$${PYTHON}" -m pip install --quiet --no-index --no-deps --no-compile \
			--target "$${site}" .whl/*.whl; \
		PYTHONPATH="$${PWD}:$${site}" "$${PYTHON}" -m benchmarks.gpu $(GPU_ARGS); \
	else \
		$(ENV); PYTHONPATH="$${PWD}" "$${env}/bin/python" -m benchmarks.gpu $(GPU_ARGS); \
	fi

docs: ## the pages of docs/ as a site in site/, strictly: a broken link is an error
	@$(ENV); NO_MKDOCS_2_WARNING=1 "$${env}/bin/python" -m mkdocs build --strict; \
	echo "docs: built into site/"

lint: ## black, ruff, pyright, shellcheck and hadolint
	@$(ENV); export PATH="$${env}/bin:$${PATH}"; \
	black --check --quiet . || black --check --diff --quiet .; \
	ruff check --quiet .; \
	pyright --pythonpath "$${env}/bin/python" $(TYPED); \
	shellcheck --external-sources --source-path=SCRIPTDIR $(SHELL_FILES); \
	hadolint Dockerfile; \
	echo "lint: black, ruff, pyright, shellcheck and hadolint found nothing"

clean: ## remove caches and the recipe's output (data, dump, exp), not the environment
	rm -rf egs2/sslam/data egs2/sslam/dump egs2/sslam/exp site .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
