# Turnloom: everything a newcomer needs is `make dev` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LOCK   := infra/requirements/dev.lock
UV     := 0.13.9

.PHONY: dev demo keys test build test-build rehearse lint lint-infra types check lock clean help

help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(STAMP): $(LOCK)
	@echo "Installing Turnloom's packages into $(VENV) (once; a few minutes on a slow line) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Turnloom needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r $(LOCK)
	@echo "$(CURDIR)/lib" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/turnloom.pth"
	@touch $@

dev: $(STAMP)    ## start everything on this machine and print where
	@$(BIN)/python -m turnloom.local

demo: $(STAMP)   ## a multi-turn conversation with tools, against a running or a fresh server
	@$(BIN)/python -m turnloom.local.demo

keys: $(STAMP)   ## API keys: make keys ARGS="create --owner me", and list, revoke; with --stack NAME a deployment's
	@$(BIN)/python -m turnloom keys $(ARGS)

test: $(STAMP)   ## all tests
	@$(BIN)/python -m pytest -n auto --dist loadfile

build: .venv-sam/.installed  ## what `sam deploy` uploads, into .aws-sam/build; WARM=snapstart or provisioned: docs/deploy.md
	@SAM_CLI_TELEMETRY=0 .venv-sam/bin/sam build --config-file infra/samconfig.toml
	@if [ -n "$(WARM)" ]; then $(BIN)/python -m infra.warm "$(WARM)"; fi
	@echo "The layer takes $$(find .aws-sam/build/Library -type f -exec cat {} + | wc -c) bytes unzipped."
	@test -e samconfig.toml || cp infra/samconfig.toml samconfig.toml
	@echo "To deploy: .venv-sam/bin/sam deploy --guided"

test-build: build $(STAMP)  ## run what was built as Lambda would run it; the layer once more, for this machine
	@$(MAKE) --no-print-directory -f lib/Makefile native ARTIFACTS_DIR=.aws-sam/native
	@$(BIN)/python -m pytest -n auto tests/build

rehearse: .venv-sam/.installed .venv-rehearse/.installed  ## deploy to an emulator of AWS on this machine, and use the API
	@$(BIN)/python -m infra.rehearse

lint: $(STAMP)   ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

# Tools whose packages do not get on with ours, or with each other's: .venv-NAME holds NAME.lock.
.venv-%/.installed: infra/requirements/%.lock $(STAMP)
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(BIN)/uv pip install --quiet --python $(@D)/bin/python --require-hashes -r $<
	@touch $@

lint-infra: .venv-sam/.installed .venv-lint/.installed  ## template and state machine: sam, checkov, statelint, asl-validator
	@SAM_CLI_TELEMETRY=0 .venv-sam/bin/sam validate --lint --region us-east-1
	@.venv-lint/bin/checkov --config-file infra/lint/checkov.yaml
	@.venv-lint/bin/statelint --ignore=URI infra/turn.asl.json
	@if node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null && npm --version >/dev/null 2>&1; then \
	  npm ci --prefix infra/lint --silent --no-audit --no-fund && infra/lint/node_modules/.bin/asl-validator --json-path infra/turn.asl.json; \
	else echo "asl-validator did not run: it needs node 20 or newer, and npm"; fi

types: $(STAMP)  ## mypy, strict
	@$(BIN)/mypy

check: lint types test  ## what CI runs

lock: $(STAMP)   ## pin the requirements again
	@cd infra/requirements && for name in dev runtime lint sam lambda rehearse; do \
	  $(abspath $(BIN))/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header $$name.in -o $$name.lock $$(test $$name != runtime || echo -c dev.lock); done

clean:           ## remove what was built; .turnloom/ (your data) stays
	@rm -rf $(VENV) .venv-* .aws-sam .mypy_cache .pytest_cache .ruff_cache
