# Wattlock. `make help` lists what there is. Everything fetched lives in .cache, everything made in build.
PYTHON ?= python3
VENV   := .cache/venv/bin/python
READY  := .cache/setup.stamp
SEED   ?= 1
N      ?= 1000

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench size soak board gateway meter deploy provision flash clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

$(READY): pyproject.toml tools/setup.py
	@$(PYTHON) -m tools.setup

setup:  ## fetch Python packages, the 32-bit MicroPython VM and mosquitto into .cache
	@$(PYTHON) -m tools.setup

demo: $(READY)  ## the whole story on the virtual board, no hardware needed; leaves build/demo
	@$(VENV) -m tools.demo $(ARGS)

test: $(READY)  ## the whole suite, two files at a time; ARGS= goes to pytest instead
	@$(VENV) -m pytest $(or $(ARGS),-n 2 --dist loadfile)

lint: $(READY)  ## ruff and pyright
	@$(VENV) -m ruff check .
	@$(VENV) -m pyright
	@$(VENV) -m pyright -p firmware

bench: $(READY)  ## counts, bytes and ratios of the budgets
	@$(VENV) -m tools.bench $(ARGS)

size: $(READY)  ## resident heap of the running agent, module by module
	@$(VENV) -m tools.size $(ARGS)

soak: $(READY)  ## every power cut of a recorded life, then N simulated days from seed SEED: make soak SEED=1 N=1000
	@$(VENV) -m host_tests.power_cuts
	@$(VENV) -m host_tests.simulation --seed $(SEED) --count $(N) $(ARGS)

board: $(READY)  ## a virtual board to play with; ARGS= as in python -m tools.virtual_board --help
	@$(VENV) -m tools.virtual_board $(or $(ARGS),--state build/board --pty build/board.tty --control 127.0.0.1:7801)

gateway: $(READY)  ## the gateway alone with tools/gateway/example.json; ARGS="--config mine.json"
	@mkdir -p build
	@$(VENV) -m tools.gateway $(or $(ARGS),--config tools/gateway/example.json)

meter: $(READY)  ## meters from the laptop: make meter ARGS=list
	@$(VENV) -m tools.meter $(or $(ARGS),list)

deploy: $(READY)  ## firmware onto a board: make deploy PORT=/dev/ttyUSB0 BOARD=esp32 CONFIG=my.json [SECRETS=]
	@$(VENV) -m tools.deploy --port "$(PORT)" --board "$(BOARD)" --config "$(CONFIG)" \
		$(if $(SECRETS),--secrets "$(SECRETS)") $(ARGS)

provision: $(READY)  ## identity and secrets onto a board: make provision PORT= STATION= [ARGS=]
	@$(VENV) -m tools.provision --port "$(PORT)" $(if $(STATION),--station "$(STATION)") $(ARGS)

flash: $(READY)  ## MicroPython onto a bare board: make flash PORT= BOARD= IMAGE=
	@$(VENV) -m tools.flash --port "$(PORT)" --board "$(BOARD)" --image "$(IMAGE)" $(ARGS)

clean:  ## remove what was made; .cache stays
	@rm -rf build .hypothesis .pytest_cache .ruff_cache
	@find . -path ./.cache -prune -o -name __pycache__ -type d -exec rm -rf {} +
