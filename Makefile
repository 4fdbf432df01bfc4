# All targets need only Python 3.11+ and pip: the first target that runs makes .venv and installs the project there, once.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A folder's baselines come first, and the better baseline is the first row, because gains are measured over the first row.
# Supervised training with strong views separates the gain from unlabeled images from the gain from strong views.
baselines = $(addprefix $(1)/,supervised_strong.toml supervised.toml)
baselines_first = $(call baselines,$(1)) $(filter-out $(call baselines,$(1)),$(sort $(wildcard $(1)/*.toml)))
DIGITS := $(call baselines,experiments/digits) $(addprefix experiments/digits/,fixmatch.toml mean_teacher.toml)
FAMILY := $(patsubst %,experiments/digits/%.toml,moco simclr byol comatch noisy_student meta_pseudo_labels ups)
# The tables were measured with each client trained alone; small clients that are fused round otherwise.
ALONE := --set engine.fuse=off
# FedEMA and FedU stand beside BYOL in a table of their own, judged by a probe on the same labels.
PERSONAL := $(patsubst %,experiments/digits/%.toml,fedema fedu)
LABELS := $(patsubst %,experiments/labels/%.toml,at_clients at_server some_clients skewed two_classes)
AT_SERVER := $(patsubst %,experiments/labels_at_server/%.toml,server_alone fixmatch fixmatch_received semifl)
NOISY := $(patsubst %,experiments/noisy_labels/%.toml,supervised fixmatch dividemix)
FASHION_ROOT ?= data
# A system's gain is over FixMatch whose labels come from the received model, so this file comes first.
systems = experiments/$(1)/fixmatch_received.toml $(filter-out %/fixmatch_received.toml,$(sort $(wildcard experiments/$(1)/*.toml)))
# RSCFed's distance weights are in images, and a client has seven times as many images of Fashion-MNIST as of digits.
RSCFED_AS_FASHION = --set strategy.distance_weight=1400 --set strategy.labeled_distance_weight=14
AS_FASHION = --set data.source=fashion_mnist --set data.root=$(FASHION_ROOT) --set data.train_size=10000 --set server.evaluate_every=5 --set server.last_rounds=3
# Tests start hundreds of processes, and without compiled files each compiles the package anew (.7 s of CPU).
unexport PYTHONDONTWRITEBYTECODE
# The variable silences a notice about MkDocs 2, which does not concern this site. Do not add --quiet: with it, --strict counts
# no warning (MkDocs 1.6).
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

.PHONY: help quickstart test image test-containers test-readme test-wheel check docs references pictures format table table-family table-pretraining table-labels table-server table-noise table-one-labeled table-drift table-systems table-systems-fashion yardsticks benchmark soak soak-deployment clean

.DEFAULT_GOAL := quickstart

help:  ## List the targets.
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / { printf "%-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(INSTALLED)  ## Train two supervised baselines, FixMatch and Mean Teacher on the same 40 labels; four to seven minutes.
	$(BIN)/fedssl run $(DIGITS) --seeds 2

test: $(INSTALLED)  ## Run all tests, three at a time, for many of them only wait.
	$(BIN)/python -m pytest -n 3 --dist worksteal

image: $(INSTALLED)  ## Build the image of a deployment; DOCKER_BUILD=... gives further arguments to `docker build`.
	docker build --tag fedssl $(DOCKER_BUILD) .

test-containers: $(INSTALLED)  ## Test a federation in containers; needs a Docker engine and the image; five minutes.
	docker compose --file docker-compose.yml config --quiet
	$(BIN)/python -m pytest -m containers tests/containers -s

test-wheel: $(INSTALLED)  ## The wheel, built, installed where there is no checkout, and at work.
	$(BIN)/python -m pytest -m wheel tests/e2e/test_wheel.py

test-readme: $(INSTALLED)  ## Test README's make targets in a clean clone with its own environment, and the notebook.
	$(BIN)/python -m pytest -m readme tests/docs tests/e2e -s

check: $(INSTALLED)  ## Check format, lint, types and import layers; build the site, where a warning is an error.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MKDOCS) build --strict

docs: $(INSTALLED)  ## Serve the site of docs/ at http://127.0.0.1:8000 until Ctrl-C; `make check` builds it in site/.
	$(MKDOCS) serve

references: $(INSTALLED)  ## Write docs/reference.md, docs/commands.md and the outline of the experiment file anew, from the code.
	$(BIN)/python docs/references

pictures: $(INSTALLED)  ## Draw the pictures of docs/concepts.md; their runs are kept under runs/pictures; a quarter of an hour.
	$(BIN)/python docs/pictures.py

format: $(INSTALLED)  ## Format the code, and let the linter fix what it can.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

table: $(INSTALLED)  ## Train two baselines and twelve methods on the 40 labels of the quickstart, five seeds; about an hour.
	$(BIN)/fedssl run $(filter-out $(FAMILY) $(PERSONAL),$(call baselines_first,experiments/digits)) --seeds 5 $(ALONE)

table-family: $(INSTALLED)  ## Compare contrastive methods, Noisy Student, Meta Pseudo Labels and UPS with FixMatch, five seeds; an hour.
	$(BIN)/fedssl run $(call baselines,experiments/digits) experiments/digits/fixmatch.toml $(FAMILY) --seeds 5 $(ALONE)
	$(BIN)/fedssl run experiments/digits/meta_pseudo_labels.toml --seeds 5 --set method.feedback=false $(ALONE)

table-pretraining: $(INSTALLED)  ## Compare pre-training, fine-tuning and distillation with FixMatch, five seeds; half an hour.
	$(BIN)/fedssl run experiments/digits/fixmatch.toml experiments/pretraining/simclr.toml --seeds 5 $(ALONE)

yardsticks: $(INSTALLED)  ## Fit scikit-learn's classifiers on the same labels of digits; seconds.
	$(BIN)/fedssl baseline experiments/digits/supervised.toml --seeds 5

table-labels: $(INSTALLED)  ## Compare five places of the same 40 labels, supervised and FixMatch, five seeds; half an hour.
	$(BIN)/fedssl run $(LABELS) --seeds 5 --set method.kind=supervised $(ALONE)
	$(BIN)/fedssl run $(LABELS) --seeds 5 $(ALONE)

table-server: $(INSTALLED)  ## Compare SemiFL, FixMatch and the server alone, labels at the server, five seeds; a quarter of an hour.
	$(BIN)/fedssl run $(AT_SERVER) --seeds 5 --set train.local_epochs=unset --set train.local_steps=20 $(ALONE)

table-noise: $(INSTALLED)  ## Compare DivideMix, FixMatch and supervised training, 20, 40 and 60 % wrong labels; an hour.
	$(BIN)/fedssl run $(NOISY) --seeds 5 --set federation.label_noise.rate=0.2 $(ALONE)
	$(BIN)/fedssl run $(NOISY) --seeds 5 --set federation.label_noise.rate=0.4 $(ALONE)
	$(BIN)/fedssl run $(NOISY) --seeds 5 --set federation.label_noise.rate=0.6 $(ALONE)

table-one-labeled: $(INSTALLED)  ## Compare RSCFed, FixMatch and the labeled client alone, one labeled client of ten; half an hour.
	$(BIN)/fedssl run $(addprefix experiments/one_labeled_client/,labeled_alone.toml fixmatch.toml mean_teacher.toml rscfed.toml) --seeds 5 $(ALONE)

table-drift: $(INSTALLED)  ## Compare FedProx, SCAFFOLD and FedDyn with FedAvg on very skewed clients, five seeds; an hour beside other work.
	$(BIN)/fedssl run $(addprefix experiments/drift/,fedavg.toml fedprox.toml scaffold.toml feddyn.toml) --seeds 5 $(ALONE)
	$(BIN)/fedssl run experiments/drift/feddyn.toml --seeds 5 --set strategy.alpha=1 $(ALONE)

table-systems: $(INSTALLED)  ## Compare the field's systems and six baselines in four protocols on digits, three seeds; hours.
	$(BIN)/fedssl run $(call systems,labels_at_server) --seeds 3 $(ALONE)
	$(BIN)/fedssl run $(call systems,labels_at_clients) --seeds 3 $(ALONE)
	$(BIN)/fedssl run $(call systems,one_labeled_client) --seeds 3 $(ALONE)
	$(BIN)/fedssl run $(call systems,four_labeled_clients) --seeds 3 $(ALONE)
	$(BIN)/fedssl run experiments/digits/byol.toml $(PERSONAL) --seeds 3 $(ALONE)

table-systems-fashion: $(INSTALLED)  ## The same on 10,000 images of Fashion-MNIST, 40 rounds; hours. FASHION_ROOT=FOLDER names the data's folder.
	$(BIN)/fedssl run $(filter-out %/one_machine.toml,$(call systems,labels_at_server)) --seeds 3 $(AS_FASHION) --set train.local_epochs=unset --set train.local_steps=20 --set rounds=40 $(ALONE)
	$(BIN)/fedssl run experiments/labels_at_server/one_machine.toml --seeds 3 $(AS_FASHION) --set train.local_epochs=unset --set train.local_steps=100 --set rounds=40 $(ALONE)
	$(BIN)/fedssl run $(filter-out %/fedema.toml,$(call systems,labels_at_clients)) --seeds 3 $(AS_FASHION) --set rounds=40 $(ALONE)
	$(BIN)/fedssl run experiments/labels_at_clients/fedema.toml --seeds 3 $(AS_FASHION) --set phases.0.rounds=27 --set phases.1.rounds=13 $(ALONE)
	$(BIN)/fedssl run $(filter-out %/rscfed.toml,$(call systems,one_labeled_client)) --seeds 3 $(AS_FASHION) --set rounds=40 $(ALONE)
	$(BIN)/fedssl run $(filter-out %/rscfed.toml,$(call systems,four_labeled_clients)) --seeds 3 $(AS_FASHION) --set rounds=40 $(ALONE)
	$(BIN)/fedssl run $(addsuffix /rscfed.toml,experiments/one_labeled_client experiments/four_labeled_clients) --seeds 3 $(AS_FASHION) $(RSCFED_AS_FASHION) --set rounds=14 $(ALONE)

benchmark: $(INSTALLED)  ## Measure start, other frameworks, scaling, augmentation, a step, teams, data, fused clients; FASHION_ROOT as above.
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python -m benchmarks.engines --fashion-root $(FASHION_ROOT)
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.scaling --memory
	$(BIN)/python benchmarks/augment.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python -m benchmarks.team
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/fusion.py

soak: $(INSTALLED)  ## Kill runs and workers at random moments, and compare the results' bits; a quarter of an hour.
	$(BIN)/python benchmarks/soak.py --kill-run 30
	$(BIN)/python benchmarks/soak.py --kill-workers 200

soak-deployment: $(INSTALLED)  ## Kill the operator and processes of a deployment at random moments, and compare the bits; half an hour.
	$(BIN)/python -m benchmarks.soak_deployment --kills 10

clean:  ## Remove the environment, caches and builds; runs/ stays.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist site *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
