# Long-term embeddings. `make help` says what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
CHECKS := .cache/checks
BIN := $(VENV)/bin
FEAST := .cache/feast
VERSITYGW := .cache/versitygw/versitygw
UV := 0.13.9
# The lines of lte_model and jobs that no test ran; `make test COVERAGE=` leaves them out.
COVERAGE := --cov --cov-report term-missing:skip-covered
export PATH := $(CURDIR)/$(BIN):$(PATH)

# The demo's installation where there is one, else an empty one for your own feed.
SETTINGS ?= $(firstword $(wildcard .lte/demo/settings.toml) infra/settings/local.toml)

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

setup: .cache/prepared  ## install Python packages, check Java, fetch Delta's jars once
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

online-store: $(FEAST)/installed  ## Feast, in an environment of its own: for [online_store] of the settings
	@echo "ready: $(FEAST)/venv/bin/python, packages of infra/feast/constraints.txt"

.cache/prepared-s3: infra/settings/s3.toml .cache/prepared
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --requirements pyproject.toml --extra s3 --extra s3-logs --constraints infra/constraints.txt
	$(BIN)/python -m jobs.prepare --settings infra/settings/s3.toml
	@touch $@

$(VERSITYGW):
	@command -v go >/dev/null || { echo "error: the S3 server of the tests is built with Go; install it (Debian: apt-get install golang)"; exit 2; }
	GOBIN=$(CURDIR)/$(dir $@) go install github.com/versity/versitygw/cmd/versitygw@v1.8.0

object-storage: .cache/prepared-s3 $(VERSITYGW)  ## S3: packages, Hadoop's client of it (690 MB), and a server for the tests
	@echo "ready: packages, jars in .cache/jars-s3, $(VERSITYGW)"

environments: $(VENV)/installed  ## Airflow, jobs and trainings apart, in .cache/environments: for [lte] of airflow.cfg
	@$(BIN)/python -m infra.environments airflow jobs training

demo: .cache/prepared  ## the whole pipeline through Airflow [DATA= JSON= LAG= WINDOW= DATE= TEST_DAYS= USERS= ITEMS=]
	@$(BIN)/python -m infra.runs.demo $(if $(DATA),--data '$(DATA)') $(if $(JSON),--json '$(JSON)') \
	    $(if $(LAG),--lag $(LAG)) $(if $(WINDOW),--window $(WINDOW)) $(if $(DATE),--date $(DATE)) \
	    $(if $(TEST_DAYS),--test-days $(TEST_DAYS)) $(if $(USERS),--users $(USERS)) $(if $(ITEMS),--items $(ITEMS))

ablation: .cache/prepared  ## every variant of the model on a feed, compared [DATA= VARIANTS= SEEDS=3 JSON= LAG= WINDOW= DATE= TEST_DAYS=]
	@test -n '$(DATA)' || { echo "error: give DATA=folder with events.parquet and items.parquet"; exit 2; }
	@$(BIN)/python -m infra.runs.ablation --data '$(DATA)' $(if $(VARIANTS),--variants '$(VARIANTS)') $(if $(SEEDS),--seeds $(SEEDS)) \
	    $(if $(JSON),--json '$(JSON)') $(if $(LAG),--lag $(LAG)) $(if $(WINDOW),--window $(WINDOW)) $(if $(DATE),--date $(DATE)) \
	    $(if $(TEST_DAYS),--test-days $(TEST_DAYS))

drill: .cache/prepared  ## rankers with LTEs of another version, on a feed or the demo shop [DATA= SEEDS=3 GAP= JSON= LAG= WINDOW= DATE= TEST_DAYS=]
	@$(BIN)/python -m infra.runs.drill $(if $(DATA),--data '$(DATA)') $(if $(SEEDS),--seeds $(SEEDS)) $(if $(GAP),--gap $(GAP)) \
	    $(if $(JSON),--json '$(JSON)') $(if $(LAG),--lag $(LAG)) $(if $(WINDOW),--window $(WINDOW)) $(if $(DATE),--date $(DATE)) \
	    $(if $(TEST_DAYS),--test-days $(TEST_DAYS))

up: .cache/prepared  ## Airflow, MLflow and the pages on loopback until Ctrl-C [SETTINGS= HOST= AIRFLOW_PORT= MLFLOW_PORT= PAGES_PORT=]
	@exec $(BIN)/python -m infra.local.stack --settings $(SETTINGS) $(if $(HOST),--host '$(HOST)')

format: $(VENV)/installed  ## ruff: lay out every file, sort its imports
	$(BIN)/ruff check --quiet --select I --fix .
	$(BIN)/ruff format .

lint: $(VENV)/installed  ## ruff: the rules of pyproject.toml, and the layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/installed  ## mypy: lte_model, jobs and infra
	$(BIN)/mypy

test-fast: $(VENV)/installed  ## the tests without Spark, Airflow, MLflow or a long training, in two processes [ARGS="tests/jobs" WORKERS=2]
	$(BIN)/python -m pytest --numprocesses $(or $(WORKERS),2) --dist loadfile --ignore tests/dags --ignore tests/e2e \
	    -m 'not spark and not airflow and not mlflow and not e2e and not slow' $(ARGS)

test: .cache/prepared $(FEAST)/installed  ## the tests but those of a production, in three processes, and the lines that none ran [ARGS="-m 'not e2e'" WORKERS=3]
	$(BIN)/python -m pytest --numprocesses $(or $(WORKERS),3) --dist loadfile --no-loadscope-reorder $(COVERAGE) $(ARGS)

test-production: .cache/prepared  ## clusters, stores and databases, broken and mended; what was lost [ARGS="-k postgres" JSON=]
	$(BIN)/python -m pytest --production $(if $(JSON),--outcomes '$(JSON)') $(ARGS)

test-kills: .cache/prepared  ## kill jobs at random instants, run them again, compare every table [KILLS=30 SEED= JSON=]
	@$(BIN)/python -m tests.jobs.kills --kills $(or $(KILLS),30) $(if $(SEED),--seed $(SEED)) $(if $(JSON),--json '$(JSON)')

bench-snapshot: .cache/prepared  ## a snapshot beside the other ways to make it [SIZE=small|20m DIMENSIONS= SIDES= REPEATS= JSON=]
	@$(BIN)/python -m tests.benchmarks.bench_snapshot $(if $(SIZE),--size $(SIZE)) $(if $(SIDES),--sides $(SIDES)) \
	    $(if $(DIMENSIONS),--dimensions $(DIMENSIONS)) $(if $(REPEATS),--repeats $(REPEATS)) $(if $(JSON),--json '$(JSON)')

bench-quality: .cache/prepared  ## every model on the real data sets, beside RecTools' SASRec [DATA= SETS= VARIANTS= SEEDS=3 LENGTHS= JSON=]
	@$(BIN)/python -m tests.benchmarks.bench_quality $(if $(DATA),--data '$(DATA)') $(if $(SETS),--sets '$(SETS)') \
	    $(if $(VARIANTS),--variants '$(VARIANTS)') $(if $(SEEDS),--seeds $(SEEDS)) $(if $(LENGTHS),--lengths '$(LENGTHS)') \
	    $(if $(JSON),--json '$(JSON)')

bench-cold-items: $(VENV)/installed  ## items that training never saw, by their content and without, in an ablation's tables: SETTINGS= DATE= [SHARE= SEED= JSON=]
	@$(BIN)/python -m tests.benchmarks.bench_cold_items --settings '$(SETTINGS)' --date '$(DATE)' \
	    $(if $(SHARE),--share $(SHARE)) $(if $(SEED),--seed $(SEED)) $(if $(JSON),--json '$(JSON)')

bench-training: $(VENV)/installed  ## training and evaluation beside RecTools' SASRec [SECONDS= REPEATS= DATA= JSON=]
	@$(BIN)/python -m tests.benchmarks.bench_training $(if $(SECONDS),--seconds $(SECONDS)) \
	    $(if $(REPEATS),--repeats $(REPEATS)) $(if $(DATA),--data '$(DATA)') $(if $(JSON),--json '$(JSON)')

bench-reader: $(FEAST)/installed  ## reading the online store: p50 and p99, SQLite and Redis [USERS= DIMENSIONS= JSON=]
	@$(FEAST)/venv/bin/python -m tests.benchmarks.bench_reader $(if $(USERS),--users $(USERS)) \
	    $(if $(DIMENSIONS),--dimensions $(DIMENSIONS)) $(if $(JSON),--json '$(JSON)')

bench-basis-map: .cache/prepared  ## what a map from one basis to another loses, on real data [DATA= SETS= JSON=]
	@$(BIN)/python -m tests.benchmarks.bench_basis_map $(if $(DATA),--data '$(DATA)') $(if $(SETS),--sets '$(SETS)') \
	    $(if $(JSON),--json '$(JSON)')

bench-scoring: .cache/prepared  ## every user's recommendations: the job, what is served, the bare model [USERS= ITEMS= LENGTH= REPEATS= JSON=]
	@$(BIN)/python -m tests.benchmarks.bench_scoring $(if $(USERS),--users $(USERS)) $(if $(ITEMS),--items $(ITEMS)) \
	    $(if $(LENGTH),--length $(LENGTH)) $(if $(REPEATS),--repeats $(REPEATS)) $(if $(JSON),--json '$(JSON)')

bench-scale: .cache/prepared  ## every step's cost at three sizes, and what it is at 50 million users [SIZES=2500,7500,25000 AGAIN=1 JSON=]
	@$(BIN)/python -m tests.benchmarks.bench_scale $(if $(SIZES),--sizes $(SIZES)) $(if $(AGAIN),--again) \
	    $(if $(JSON),--json '$(JSON)')

$(CHECKS)/installed: infra/checks/requirements.txt infra/checks/constraints.txt | $(VENV)/installed
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(CHECKS)
	VIRTUAL_ENV=$(CHECKS) $(BIN)/uv pip install --quiet --requirements infra/checks/requirements.txt --constraints infra/checks/constraints.txt
	GOBIN=$(CURDIR)/$(CHECKS)/bin go install helm.sh/helm/v3/cmd/helm@v3.22.0 || echo "no helm: go can't build it here"
	@touch $@

check-infra: $(CHECKS)/installed  ## images, compose, Kubernetes and Helm files, by the tools that know them [CHART=]
	@$(BIN)/python -m infra.checks.files --tools $(CHECKS) $(if $(CHART),--chart '$(CHART)')

audit: $(CHECKS)/installed  ## installed versions: known vulnerabilities, yanked or unknown ones
	@$(BIN)/python -m infra.checks.audit --tools $(CHECKS)

clean:  ## remove what demos and tests made; packages, jars and .lte/local stay
	test ! -d .lte || find .lte -mindepth 1 -maxdepth 1 ! -name local -exec rm -rf {} +
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis .cache/coverage
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print | xargs rm -rf

# Every target that is a plain word; files have a dot or a slash.
.PHONY: $(shell sed -nE 's/^([a-z-]+):.*/\1/p' $(firstword $(MAKEFILE_LIST)))
