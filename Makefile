# Every target does its own set-up: the first one to run creates $(VENV).
VENV ?= .venv
# Another interpreter: make test PYTHON=/path/to/python3.12
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

# All that is needed ships with the repository.
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help demo test slow fuzz soak kills comfyui-test stranger check contracts audit format docs support schedules demo-model demo-model-64 video-model \
	sound-model notebooks wheel wheel-test clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

demo: $(VENV)/.installed ## calibrate the demo model and compare, with a table and a picture
	$(BIN)/adaptcache demo

test: $(VENV)/.installed ## run the tests
	$(BIN)/python -m pytest

slow: $(VENV)/.installed ## run the slow tests
	$(BIN)/python -m pytest -m slow

fuzz: $(VENV)/.installed ## read 100,000 broken files, or FUZZ=number of them
	$(BIN)/python -m tests.fuzz $(FUZZ)

soak: $(VENV)/.installed ## 10,000 short runs on one pipeline, or SOAK=number of them
	$(BIN)/python -m tests.soak $(SOAK)

kills: $(VENV)/.installed ## kill a calibration 30 times on its way, or KILLS=number of times
	$(BIN)/python -m tests.kills $(KILLS)

contracts: $(VENV)/.installed ## test plug-ins and exports with the engines' own wheels (40 MB), and with checkouts: SOURCES=folder
	$(BIN)/python -m pip --disable-pip-version-check download --quiet --no-deps --dest build/wheels \
		sglang==0.5.23 vllm-omni==0.30.0 cache-dit==1.5.3 xfuser==0.7.0
	for wheel in build/wheels/*.whl; do $(BIN)/python -m zipfile -e $$wheel build/engines; done
	PYTHONPATH=build/engines $(BIN)/python -m pytest -rs tests/test_serving.py tests/test_export_engines.py \
		tests/test_export_sources.py

comfyui-test: $(VENV)/.installed ## run the engine and the nodes in a ComfyUI of yours: COMFYUI_PATH=folder
	$(BIN)/python -m pytest -rs tests/test_comfyui.py tests/test_comfyui_real.py

stranger: $(VENV)/.installed ## walk the path of docs/comfyui.md in a copy of your ComfyUI, with an environment of its own (6 GB)
	$(BIN)/python -m tests.stranger

audit: $(VENV)/.installed-dev ## look the pinned versions up among known vulnerabilities (needs the network)
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip --quiet install pip-audit
	build/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

check: $(VENV)/.installed-dev ## lint, check the format and the types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## format, and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs ## build the documentation into build/docs; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

schedules: $(VENV)/.installed ## fit the schedules that ship again
	for model in emoji-flux emoji-flux-32; do for speed in 2 2.8 4 5.6; do \
		$(BIN)/adaptcache calibrate --model $$model --speed $$speed || exit; done; done
	$(BIN)/adaptcache calibrate --model emoji-wan --speed 2
	$(BIN)/adaptcache calibrate --model tones --speed 2

notebooks: $(VENV)/.installed-notebooks ## execute the notebooks and store their outputs
	$(BIN)/python -m notebooks.execute

support: $(VENV)/.installed ## measure and write the table of supported pipelines, docs/support.md
	$(BIN)/python -m docs.support

demo-model: $(VENV)/.installed ## train the demo model again (an hour on two cores; needs npm)
	$(BIN)/python -m calibration.demo

demo-model-64: $(VENV)/.installed ## train the 64 px demo model again (ten minutes on a GPU; needs npm)
	$(BIN)/python -m calibration.demo_64 --device $(or $(DEVICE),cuda)

video-model: $(VENV)/.installed ## train the video demo model again (needs npm)
	$(BIN)/python -m calibration.demo_video

sound-model: $(VENV)/.installed ## train the sound demo model again
	$(BIN)/python -m calibration.demo_audio

wheel: $(VENV)/.installed-dev ## build the wheel into dist/
	$(BIN)/python -m build --wheel

wheel-test: wheel ## install the wheel into an empty environment and use it: no checkout, no extras, then the demo
	PYTHON=$(PYTHON) sh tests/wheel.sh

clean: ## remove builds, caches and the demo's output (not the virtual environment)
	rm -rf build dist demo-output .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(or $(PYTHON),false) -c '$(NEW_ENOUGH)' 2>/dev/null || { echo "adaptcache needs Python 3.11 or newer:\
	 apt install python3.11 python3.11-venv, or make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot create virtual\
	 environments: apt install python3-venv" >&2; exit 1; }
	@echo "Setting up $(VENV): this takes a few minutes, once."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) --editable '.[demo,metrics,report,tune,test]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.installed-notebooks: $(VENV)/.installed
	@$(PIP) --editable '.[notebooks]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@$(PIP) --editable '.[docs]'
	@touch $@
