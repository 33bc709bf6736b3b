# `make sweep` and `make test` set up what they need; the other targets too.
EXPERIMENT ?= pocket
ARGS ?=
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: sweep plan report ui test bench check setup clean

sweep: $(READY)
	$(RUN)/ftmatrix experiment=$(EXPERIMENT) $(ARGS)

plan: $(READY)
	$(RUN)/ftmatrix plan experiment=$(EXPERIMENT) $(ARGS)

report: $(READY)
	$(RUN)/ftmatrix report $(EXPERIMENT) $(ARGS)

ui: $(READY)
	$(RUN)/ftmatrix ui $(ARGS)

test: $(READY)
	$(RUN)/python -m pytest $(ARGS)

bench: $(READY)
	$(RUN)/python -m benchmarks $(ARGS)

check: $(READY)
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV), once: a minute or more of downloads"
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) .ftmatrix dist build .mypy_cache .ruff_cache .pytest_cache
