# The commands a person types. `make quickstart` and `make test` do all the set-up on a fresh machine.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: help quickstart test test-slow slurm-packages lint format schemas golden clean

help:
	@echo "make quickstart   set up, train a grid of small models, fit a scaling law, write the report (about 3 minutes)"
	@echo "make test         set up and run the tests (under 5 minutes)"
	@echo "make test-slow    the long tests;  make slurm-packages  what those of Slurm need (Debian and Ubuntu, root)"
	@echo "make lint         ruff, mypy and the pre-commit checks;  make format  puts the code into shape"
	@echo "make schemas      regenerate the JSON schemas;  make golden  accept new golden files"

# A stamp is newer than what it was installed from, so a second call installs nothing.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed tests/oracles.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/oracles.txt || \
		echo "tests/oracles.txt could not be installed: the tests against those packages will skip"
	@touch $@

# Ray, transformers and lm-eval are large and not needed to work on this: where they cannot be had, the tests that need
# them skip.
$(VENV)/.installed-peers: $(VENV)/.installed-dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt 'ray[default]' || \
		echo "Ray could not be installed: the tests that need it will skip"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]' || \
		echo "the extra 'peers' could not be installed: the tests against those packages will skip"
	@touch $@

quickstart: $(VENV)/.installed
	$(BIN)/python -m experiments run studies/quickstart.yaml

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2

test-slow: $(VENV)/.installed-peers
	$(BIN)/python -m pytest -m "slow or browser or notebook or slurm or ray or faults"

# Only installs: the tests start a cluster of their own.
slurm-packages:
	@for program in munged slurmctld slurmd sbatch; do PATH="$$PATH:/usr/sbin" command -v $$program || missing=1; done; \
	test -z "$$missing" || { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
		--no-install-recommends slurmctld slurmd slurm-client munge; }

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

schemas: $(VENV)/.installed
	$(BIN)/python -m nanogpt schema config > configs/config.schema.json
	$(BIN)/python -m experiments schema study > configs/study.schema.json

golden: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/golden --update-golden

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
