# make setup | demo | test | verify | clean. Everything lives in .venv; nothing else is touched,
# except that Debian packages are installed through apt-get when run as root.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The first interpreter that is one of the supported versions and really starts.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do \
	"$$p" -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
	2>/dev/null && echo "$$p" && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.wm_node-ready
APT_PACKAGES := libegl1 libgl1-mesa-dri
EXTRAS := ros,sim,openvino,tensorrt,train,report,jerk,test,dev

# Set to an index of CPU builds of torch on a machine whose default index would bring CUDA
# (several GB); PIP_FIND_LINKS and the other PIP_ variables are honoured by pip itself.
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check
PIP_TORCH := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX),)

EPISODES ?= 10
SEED ?= 0
OUT ?= wm_demo

# Tests that start processes or keep time have the machine to themselves; the others share its cores.
ALONE := $(patsubst %,test/cli/test_%.py,demo doctor node_run processes replay shared_memory) \
	test/faults test/launch test/nodes test/planning/test_timing.py test/recording
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))

.PHONY: help setup system demo lint test verify clean

help:
	@echo "make setup    create $(VENV) with everything that the demo, training and tests need"
	@echo "make demo     run the simulated robot in closed loop (EPISODES=$(EPISODES) SEED=$(SEED) OUT=$(OUT))"
	@echo "make test     formatter, linter, type checker and tests"
	@echo "make verify   the same, but 2000 examples in place of 60 for each property and fuzz test, 10,000 malformed messages, an hour of random faults, and a demo of 30 episodes"
	@echo "make clean    remove $(VENV) and all caches and build outputs"

setup: $(STAMP)

system:
	@missing=""; \
	if command -v dpkg-query >/dev/null; then \
		for p in $(APT_PACKAGES); do \
			dpkg-query -W -f='$${Status}' "$$p" 2>/dev/null | grep -q 'ok installed' \
				|| missing="$$missing $$p"; \
		done; \
	fi; \
	if [ -z "$$missing" ]; then echo "[1/4] system packages: present"; \
	elif [ "$$(id -u)" = 0 ]; then \
		echo "[1/4] system packages: installing$$missing"; \
		apt-get update -qq; \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	else \
		echo "[1/4] system packages missing; run: sudo apt-get install$$missing" >&2; exit 1; \
	fi

$(STAMP): setup.py constraints.txt Makefile | system
	@test -n "$(PYTHON)" || { echo "Python 3.10, 3.11 or 3.12 with venv is needed; install one or set PYTHON=." >&2; exit 1; }
	@echo "[2/4] virtual environment: $(VENV) ($$($(PYTHON) --version))"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -q -c constraints.txt pip setuptools wheel
	@echo "[3/4] torch 2.13.0"
	@$(PIP) install -q -c constraints.txt $(PIP_TORCH) torch==2.13.0
	@echo "[4/4] wm_node and everything it uses (a few minutes the first time)"
	@$(PIP) install -q --no-build-isolation -c constraints.txt $(PIP_TORCH) -e '.[$(EXTRAS)]'
	@touch $@
	@echo "ready: . $(BIN)/activate && wm --help"

demo: setup
	@$(BIN)/wm demo --episodes $(EPISODES) --seed $(SEED) --out $(OUT)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy wm_node

# Both halves run even if the first one fails, unless it was interrupted.
define run_tests
rc=0; \
$(1) -n $(WORKERS) --dist loadfile $(addprefix --ignore=,$(ALONE)) || rc=$$?; \
test $$rc != 2 || exit 2; \
$(1) $(ALONE) || rc=$$?; \
exit $$rc
endef

test: lint
	@$(call run_tests,$(BIN)/python -m pytest -q)

verify: lint
	@$(call run_tests,WM_VERIFY=1 $(BIN)/python -m pytest -q --timeout=3600)

clean:
	rm -rf $(VENV) build install log *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
