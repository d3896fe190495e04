# Long-term embeddings. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
CHECKS := .cache/checks
BIN := $(VENV)/bin
FEAST := .cache/feast
VERSITYGW := .cache/versitygw/versitygw
UV := 0.13.9
# Lists the lines of lte_model and jobs that no test runs; `make test COVERAGE=` skips the list.
COVERAGE := --cov --cov-report term-missing:skip-covered
export PATH := $(CURDIR)/$(BIN):$(PATH)

# The demo's installation if it exists, else an empty one for your own feed.
SETTINGS ?= $(firstword $(wildcard .lte/demo/settings.toml) infra/settings/local.toml)

help:  ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

setup: .cache/prepared  ## install Python packages, check Java, download Delta's jars once
	@echo "ready: $$($(BIN)/python --version), packages of infra/constraints.txt, jars in .cache/jars"

$(VENV)/installed: pyproject.toml infra/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "error: $(PYTHON) is $$($(PYTHON) --version); Python 3.11 or later is needed: make setup PYTHON=python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv==$(UV)
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --requirements pyproject.toml --extra airflow --extra kubernetes --extra jobs --extra training --extra test --extra bench --extra airflow-server --extra mlflow-server --constraints infra/constraints.txt
	@touch $@

.cache/prepared: $(VENV)/installed
	$(BIN)/python -m jobs.prepare --settings infra/settings/local.toml
	@mkdir -p .cache && touch $@

$(FEAST)/installed: infra/feast/requirements.txt infra/feast/constraints.txt | $(VENV)/installed
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(FEAST)/venv
	VIRTUAL_ENV=$(FEAST)/venv $(BIN)/uv pip install --quiet --compile-bytecode --requirements infra/feast/requirements.txt --constraints infra/feast/constraints.txt
	@touch $@

online-store: $(FEAST)/installed  ## install Feast in its own environment, for [online_store] of the settings
	@echo "ready: $(FEAST)/venv/bin/python, packages of infra/feast/constraints.txt"

.cache/prepared-s3: infra/settings/s3.toml .cache/prepared
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --requirements pyproject.toml --extra s3 --extra s3-logs --constraints infra/constraints.txt
	$(BIN)/python -m jobs.prepare --settings infra/settings/s3.toml
	@touch $@

$(VERSITYGW):
	@command -v go >/dev/null || { echo "error: the S3 server of the tests is built with Go; install it (Debian: apt-get install golang)"; exit 2; }
	GOBIN=$(CURDIR)/$(dir $@) go install github.com/versity/versitygw/cmd/versitygw@v1.8.0

object-storage: .cache/prepared-s3 $(VERSITYGW)  ## install S3 packages, Hadoop's S3 client (690 MB), and an S3 server for the tests
	@echo "ready: packages, jars in .cache/jars-s3, $(VERSITYGW)"

environments: $(VENV)/installed  ## make separate environments for Airflow, jobs and trainings in .cache/environments, for [lte] of airflow.cfg
	@$(BIN)/python -m infra.environments airflow jobs training

demo: .cache/prepared  ## run the whole pipeline through Airflow [DATA= JSON= LAG= WINDOW= DATE= TEST_DAYS= USERS= ITEMS=]
	@$(BIN)/python -m infra.runs.demo $(if $(DATA),--data '$(DATA)') $(if $(JSON),--json '$(JSON)') \
	    $(if $(LAG),--lag $(LAG)) $(if $(WINDOW),--window $(WINDOW)) $(if $(DATE),--date $(DATE)) \
	    $(if $(TEST_DAYS),--test-days $(TEST_DAYS)) $(if $(USERS),--users $(USERS)) $(if $(ITEMS),--items $(ITEMS))

ablation: .cache/prepared  ## compare every variant of the model on a feed [DATA= VARIANTS= SEEDS=3 JSON= LAG= WINDOW= DATE= TEST_DAYS=]
	@test -n '$(DATA)' || { echo "error: give DATA=folder with events.parquet and items.parquet"; exit 2; }
	@$(BIN)/python -m infra.runs.ablation --data '$(DATA)' $(if $(VARIANTS),--variants '$(VARIANTS)') $(if $(SEEDS),--seeds $(SEEDS)) \
	    $(if $(JSON),--json '$(JSON)') $(if $(LAG),--lag $(LAG)) $(if $(WINDOW),--window $(WINDOW)) $(if $(DATE),--date $(DATE)) \
	    $(if $(TEST_DAYS),--test-days $(TEST_DAYS))

drill: .cache/prepared  ## measure rankers with LTEs of another version, on a feed or the demo shop [DATA= SEEDS=3 GAP= JSON= LAG= WINDOW= DATE= TEST_DAYS=]
	@$(BIN)/python -m infra.runs.drill $(if $(DATA),--data '$(DATA)') $(if $(SEEDS),--seeds $(SEEDS)) $(if $(GAP),--gap $(GAP)) \
	    $(if $(JSON),--json '$(JSON)') $(if $(LAG),--lag $(LAG)) $(if $(WINDOW),--window $(WINDOW)) $(if $(DATE),--date $(DATE)) \
	    $(if $(TEST_DAYS),--test-days $(TEST_DAYS))

up: .cache/prepared  ## run Airflow, MLflow and the pages on loopback until Ctrl-C [SETTINGS= HOST= AIRFLOW_PORT= MLFLOW_PORT= PAGES_PORT=]
	@exec $(BIN)/python -m infra.local.stack --settings $(SETTINGS) $(if $(HOST),--host '$(HOST)')

format: $(VENV)/installed  ## format every file and sort its imports with ruff
	$(BIN)/ruff check --quiet --select I --fix .
	$(BIN)/ruff format .

lint: $(VENV)/installed  ## check the rules of pyproject.toml and the format with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/installed  ## check the types of lte_model, jobs and infra with mypy
	$(BIN)/mypy

test-fast: $(VENV)/installed  ## run the tests without Spark, Airflow, MLflow or a long training, in two processes [ARGS="tests/jobs" WORKERS=2]
	$(BIN)/python -m pytest --numprocesses $(or $(WORKERS),2) --dist loadfile --ignore tests/dags --ignore tests/e2e \
	    -m 'not spark and not airflow and not mlflow and not e2e and not slow' $(ARGS)

test: .cache/prepared $(FEAST)/installed  ## run all but the production tests in three processes, and list the lines that no test runs [ARGS="-m 'not e2e'" WORKERS=3]
	$(BIN)/python -m pytest --numprocesses $(or $(WORKERS),3) --dist loadfile --no-loadscope-reorder $(COVERAGE) $(ARGS)

test-production: .cache/prepared  ## break clusters, stores and databases, and count what was lost [ARGS="-k postgres" JSON=]
	$(BIN)/python -m pytest --production $(if $(JSON),--outcomes '$(JSON)') $(ARGS)

test-kills: .cache/prepared  ## kill jobs at random instants, rerun them, compare every table [KILLS=30 SEED= JSON=]
	@$(BIN)/python -m tests.jobs.kills --kills $(or $(KILLS),30) $(if $(SEED),--seed $(SEED)) $(if $(JSON),--json '$(JSON)')

bench-snapshot: .cache/prepared  ## measure a snapshot against other ways to make it [SIZE=small|20m DIMENSIONS= SIDES= REPEATS= JSON=]
	@$(BIN)/python -m tests.benchmarks.bench_snapshot $(if $(SIZE),--size $(SIZE)) $(if $(SIDES),--sides $(SIDES)) \
	    $(if $(DIMENSIONS),--dimensions $(DIMENSIONS)) $(if $(REPEATS),--repeats $(REPEATS)) $(if $(JSON),--json '$(JSON)')

bench-quality: .cache/prepared  ## compare every model on real data sets with RecTools' SASRec [DATA= SETS= VARIANTS= SEEDS=3 LENGTHS= JSON=]
	@$(BIN)/python -m tests.benchmarks.bench_quality $(if $(DATA),--data '$(DATA)') $(if $(SETS),--sets '$(SETS)') \
	    $(if $(VARIANTS),--variants '$(VARIANTS)') $(if $(SEEDS),--seeds $(SEEDS)) $(if $(LENGTHS),--lengths '$(LENGTHS)') \
	    $(if $(JSON),--json '$(JSON)')

bench-cold-items: $(VENV)/installed  ## rank items that training never saw, with and without content, on an ablation's tables: SETTINGS= DATE= [SHARE= SEED= JSON=]
	@$(BIN)/python -m tests.benchmarks.bench_cold_items --settings '$(SETTINGS)' --date '$(DATE)' \
	    $(if $(SHARE),--share $(SHARE)) $(if $(SEED),--seed $(SEED)) $(if $(JSON),--json '$(JSON)')

bench-training: $(VENV)/installed  ## measure training and evaluation against RecTools' SASRec [SECONDS= REPEATS= DATA= JSON=]
	@$(BIN)/python -m tests.benchmarks.bench_training $(if $(SECONDS),--seconds $(SECONDS)) \
	    $(if $(REPEATS),--repeats $(REPEATS)) $(if $(DATA),--data '$(DATA)') $(if $(JSON),--json '$(JSON)')

bench-reader: $(FEAST)/installed  ## measure reads of the online store: p50 and p99, SQLite and Redis [USERS= DIMENSIONS= JSON=]
	@$(FEAST)/venv/bin/python -m tests.benchmarks.bench_reader $(if $(USERS),--users $(USERS)) \
	    $(if $(DIMENSIONS),--dimensions $(DIMENSIONS)) $(if $(JSON),--json '$(JSON)')

bench-basis-map: .cache/prepared  ## measure what a map from one basis to another loses, on real data [DATA= SETS= JSON=]
	@$(BIN)/python -m tests.benchmarks.bench_basis_map $(if $(DATA),--data '$(DATA)') $(if $(SETS),--sets '$(SETS)') \
	    $(if $(JSON),--json '$(JSON)')

bench-scoring: .cache/prepared  ## measure users ranked per second: the job, the served model, the bare model [USERS= ITEMS= LENGTH= REPEATS= JSON=]
	@$(BIN)/python -m tests.benchmarks.bench_scoring $(if $(USERS),--users $(USERS)) $(if $(ITEMS),--items $(ITEMS)) \
	    $(if $(LENGTH),--length $(LENGTH)) $(if $(REPEATS),--repeats $(REPEATS)) $(if $(JSON),--json '$(JSON)')

bench-scale: .cache/prepared  ## measure every step's cost at three sizes, and extrapolate to 50 million users [SIZES=2500,7500,25000 AGAIN=1 JSON=]
	@$(BIN)/python -m tests.benchmarks.bench_scale $(if $(SIZES),--sizes $(SIZES)) $(if $(AGAIN),--again) \
	    $(if $(JSON),--json '$(JSON)')

$(CHECKS)/installed: infra/checks/requirements.txt infra/checks/constraints.txt | $(VENV)/installed
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(CHECKS)
	VIRTUAL_ENV=$(CHECKS) $(BIN)/uv pip install --quiet --requirements infra/checks/requirements.txt --constraints infra/checks/constraints.txt
	GOBIN=$(CURDIR)/$(CHECKS)/bin go install helm.sh/helm/v3/cmd/helm@v3.22.0 || echo "no helm: go can't build it here"
	@touch $@

check-infra: $(CHECKS)/installed  ## validate image, compose, Kubernetes and Helm files with their own tools [CHART=]
	@$(BIN)/python -m infra.checks.files --tools $(CHECKS) $(if $(CHART),--chart '$(CHART)')

audit: $(CHECKS)/installed  ## check pinned versions for vulnerabilities, yanked and unknown ones
	@$(BIN)/python -m infra.checks.audit --tools $(CHECKS)

clean:  ## remove the outputs of demos and tests; keep packages, jars and .lte/local
	test ! -d .lte || find .lte -mindepth 1 -maxdepth 1 ! -name local -exec rm -rf {} +
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis .cache/coverage
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print | xargs rm -rf

# Every target that is not a file: files have a dot or a slash.
.PHONY: $(shell sed -nE 's/^([a-z-]+):.*/\1/p' $(firstword $(MAKEFILE_LIST)))
