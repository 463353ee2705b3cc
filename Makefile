# Turnloom: everything a newcomer needs is `make dev` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LOCK   := infra/requirements/dev.lock

.PHONY: dev demo test lint types check lock clean help

help:            ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(STAMP): $(LOCK)
	@echo "Installing Turnloom's packages into $(VENV) (once; a few minutes on a slow line) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Turnloom needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r $(LOCK)
	@echo "$(CURDIR)/lib" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/turnloom.pth"
	@touch $@

dev: $(STAMP)    ## start everything on this machine and print where
	@$(BIN)/python -m turnloom.local

demo: $(STAMP)   ## a multi-turn conversation with tools, against a running or a fresh server
	@$(BIN)/python -m turnloom.local.demo

test: $(STAMP)   ## all tests
	@$(BIN)/python -m pytest

lint: $(STAMP)   ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy, strict
	@$(BIN)/mypy

check: lint types test  ## what CI runs

lock: $(STAMP)   ## pin the requirements again
	@cd infra/requirements && for name in runtime dev; do \
	  $(abspath $(BIN))/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header $$name.in -o $$name.lock; done

clean:           ## remove what was built; .turnloom/ (your data) stays
	@rm -rf $(VENV) .aws-sam .mypy_cache .pytest_cache .ruff_cache
