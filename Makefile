# `make help` lists the commands. Each one sets up what it needs.

PYTHON ?= python3
# What the notebooks read as PONG_BUDGET: quick, for the tests and a first look, or full.
BUDGET ?= quick
# What .venv is installed from. requirements-dev.in takes the newest releases instead.
REQUIREMENTS ?= requirements-dev.txt

SHELL := bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

export PYTHONUTF8 := 1
export PONG_BUDGET := $(BUDGET)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
VENV := .venv/installed
# The agents that `make bench` compares with have an environment of their own.
PEERS := .venv/peers/installed
MINUTES ?= 10

# The parts of the recorded results that "Inside the agent" shows.
INSIDE := erasing variants_of_the_game points

# How many tests run at the same time.
TEST_JOBS ?= 2

HTML := _build/html
NOTEBOOKS = $(shell grep -l "^kernelspec:" content/*.md)

.PHONY: help
help: ## list the commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  make book BUDGET=full runs the notebooks on the full budget; PYTHON=... picks a Python."

.PHONY: book
book: $(VENV) ## execute the notebooks and build the HTML pages
# The cache knows the text of the notebooks it has executed, but not their budget.
	@[ "$$(cat _build/budget 2>/dev/null)" = $(BUDGET) ] || rm -rf _build
	@mkdir -p _build && echo $(BUDGET) >_build/budget
	@$(BIN)/jupyter-book build . -n -W --keep-going
	@echo
	@echo "The book is in $(HTML): open index.html there, or serve it:"
	@echo "  $(BIN)/python -m http.server --directory $(HTML) 8000"
	@echo "and open http://localhost:8000"

# The book is executed on the quick budget. For nbval, which then runs the .ipynb beside its
# pages and compares outputs that do not depend on it, some seconds of training are enough.
.PHONY: test
test: export PONG_BUDGET := 5
test: $(VENV) system-packages ## run every check
	@$(BIN)/python -m pytest -n $(TEST_JOBS) $(PYTEST_FLAGS)

.PHONY: lab
lab: $(VENV) ## open the notebooks in JupyterLab, on the full budget
	@env -u PONG_BUDGET $(BIN)/jupyter lab --notebook-dir=content \
	    $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_FLAGS)

.PHONY: train
train: $(VENV) ## run "Train to win" as a program, on the full budget
	@mkdir -p _build
	@$(BIN)/jupytext --quiet --to py:percent content/train-to-win.md --output _build/train-to-win.py
	@cd content && env -u PONG_BUDGET MPLBACKEND=agg $(abspath $(BIN))/python ../_build/train-to-win.py

# What the pages show as recorded, written by the notebooks' own functions. About four hours
# on two cores; the longest part, `agent`, keeps checkpoints in _build and goes on from them.
.PHONY: record
record: $(VENV) ## record the reference runs, the ladder, the agent, and Ray anew
	@$(BIN)/python content/data/record.py runs agent finish evaluation games plateau strokes ladder ladder_speed
	@$(BIN)/python content/data/record.py $(INSIDE) scale_out

# After new weights, without a new training: eight minutes on two cores.
.PHONY: inside
inside: $(VENV) ## record anew what "Inside the agent" shows of the shipped agent
	@$(BIN)/python content/data/record.py $(INSIDE)

.PHONY: bench
bench: $(VENV) $(PEERS) ## compare speed, the ladder, other agents (MINUTES=10 each), and pages
	@$(BIN)/python content/data/record.py speed ladder_speed ladder
	@MINUTES=$(MINUTES) $(PEERS:installed=bin/python) content/data/record.py comparison
	@$(MAKE) --no-print-directory lighthouse

.PHONY: lighthouse
lighthouse: book system-packages ## measure how fast and how usable the pages are (needs Node.js)
	@$(BIN)/python tests/lighthouse.py

.PHONY: notebooks
notebooks: $(VENV) ## run the .md files and refresh the .ipynb beside them
	@set -e; for source in $(NOTEBOOKS); do \
	    echo "$$source"; \
	    $(BIN)/jupytext --quiet --to ipynb --output "$${source%.md}.new.ipynb" --execute "$$source"; \
	    $(BIN)/nbstripout --keep-count \
	        --extra-keys metadata.language_info.version "$${source%.md}.new.ipynb"; \
	    mv "$${source%.md}.new.ipynb" "$${source%.md}.ipynb"; \
	done

.PHONY: format
format: $(VENV) ## format the code in tests and notebooks
	@$(BIN)/ruff format tests
	@$(BIN)/ruff check --fix --quiet tests
	@$(BIN)/jupytext --quiet --pipe "ruff format -" $(NOTEBOOKS)

.PHONY: picture
picture: $(VENV) ## redraw the picture of README.md with the functions of the chapter
	@$(BIN)/python -m pytest tests/test_picture.py --mpl-generate-path=content/images

.PHONY: alone
alone: ## run each notebook alone in an empty folder, with PYTHON as it is
	@set -e; for notebook in content/*.ipynb; do \
	    folder=$$(mktemp -d); \
	    cp "$$notebook" "$$folder"; \
	    echo "$$notebook"; \
	    (cd "$$folder" && $(PYTHON) -m nbconvert --to notebook --execute --inplace *.ipynb); \
	    rm -r "$$folder"; \
	done

.PHONY: binder
binder: $(VENV) ## build the image that Binder would build (needs Docker)
	@$(BIN)/jupyter-repo2docker --no-run .

.PHONY: linkcheck
linkcheck: $(VENV) ## check that links to other sites still work (needs the internet)
	@$(BIN)/jupyter-book build . --builder linkcheck

.PHONY: lock
lock: $(VENV) ## make requirements*.txt from requirements*.in, with the newest releases
	@$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	    --custom-compile-command "make lock" --output-file requirements-dev.txt requirements-dev.in
	@$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	    --custom-compile-command "make lock" --constraint requirements-dev.txt \
	    --output-file requirements.txt requirements.in

.PHONY: repository
repository: ## set the project's address everywhere: make repository URL=https://github.com/you/pong
	@set -e; echo "$(URL)" | grep -Eq '^https://github.com/[^/ ]+/[^/ ]+$$' || \
	    { echo "say which: make repository URL=https://github.com/you/pong"; exit 2; }
	@set -e; old=$$(sed -n 's|^  url: https://github.com/||p' _config.yml); new="$(URL)"; \
	sed -i.bak "s|$$old|$${new#https://github.com/}|g" _config.yml CITATION.cff README.md content/train-to-win.* content/inside-the-agent.* content/scale-out.*; \
	rm _config.yml.bak CITATION.cff.bak README.md.bak content/*.bak

.PHONY: clean
clean: ## remove what the commands made, and .venv
	rm -rf _build .venv content/video content/checkpoints .pytest_cache .ruff_cache
	find . -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

# Set-up, used by the commands above.

$(VENV): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=python3.13 ..."; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(MAKE) --no-print-directory apt PACKAGES=python3-venv
	@rm -rf .venv
	@$(PYTHON) -m venv .venv
	@echo "Installing $(REQUIREMENTS) into .venv ..."
	@$(BIN)/python -m pip install --quiet $(if $(filter %.txt,$<),--require-hashes) --requirement $<
	@rm -rf _build  # made with other versions
	@touch $@

$(PEERS): requirements-peers.txt $(VENV)
	@$(PYTHON) -m venv .venv/peers
	@echo "Installing $< into .venv/peers ..."
	@.venv/peers/bin/python -m pip install --quiet --requirement $<
	@touch $@

# Debian and Ubuntu: a virtual screen (apt.txt), and for the browser tests Chromium and
# what Playwright's own driver needs. On other systems the tests use the Chrome that is there.
.PHONY: system-packages
system-packages:
	@set -e; if command -v apt-get >/dev/null; then \
	    packages="$$(grep -v '^#' apt.txt | tr '\n' ' ') libatomic1"; \
	    command -v google-chrome >/dev/null || packages="$$packages chromium"; \
	    dpkg -s $$packages >/dev/null 2>&1 || $(MAKE) --no-print-directory apt PACKAGES="$$packages"; \
	fi

.PHONY: apt
apt:
	@command -v apt-get >/dev/null || { echo "please install $(PACKAGES) with your system's package manager"; exit 2; }
	@set -e; sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	echo "Installing $(PACKAGES) with apt-get ..."; \
	$$sudo apt-get update -qq; \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES) >/dev/null
