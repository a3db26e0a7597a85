# `make help` lists the commands. Each one sets up what it needs.

PYTHON ?= python3
# quick, full, or a number of seconds: how long notebooks train, if not as each command says.
BUDGET := $(or $(BUDGET),$(PONG_BUDGET))
# What a new .venv is installed from. pyproject.toml takes the newest releases instead.
REQUIREMENTS ?= requirements-dev.txt
# How many tests run at the same time.
TEST_JOBS ?= 2
# For each of the other agents of `make bench`.
MINUTES ?= 10

SHELL := bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# What the commands pass on is decided here: nothing that somebody has set for other
# programs changes what a notebook shows.
unexport MPLBACKEND IPYTHONDIR JUPYTER_CONFIG_DIR JUPYTER_CONFIG_PATH JUPYTER_PATH
unexport PYTHONHOME PYTHONINSPECT PYTHONIOENCODING PYTHONOPTIMIZE PYTHONPATH
unexport PYTHONSAFEPATH PYTHONSTARTUP PYTHONWARNINGS PIP_USER
unexport CDPATH FORCE_COLOR NO_COLOR RAY_ADDRESS SPHINXOPTS
# Hundreds of Python programs start here: they keep what they have compiled.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONUTF8 := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
export PONG_BUDGET = $(or $(BUDGET),quick)

ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
VENV := .venv/installed
# The programs in .venv know where it is, and which Python it has: after a move, or
# without that Python, it is made anew.
ifneq "$(shell test -x $(BIN)/python && cat $(VENV) 2>/dev/null)" "$(CURDIR)"
$(shell rm -f $(VENV))
endif
# The agents that `make bench` compares with have an environment of their own.
PEERS := .venv/peers/installed

HTML := _build/html
# What the build makes: _build also keeps recordings that can go on.
MADE := _build/{html,.doctrees,.jupyter_cache,jupyter_execute,state}
BUILD = $(BIN)/jupyter-book build content --config _config.yml --toc "$(CURDIR)/_toc.yml" --path-output .
NOTEBOOKS = $(shell grep -l "^jupytext:" content/*.md)

.PHONY: help
help: ## list the commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  make book BUDGET=full runs the notebooks on the full budget; PYTHON=... picks a Python for a new .venv (make clean first)."

# Two pages are executed at a time, but for the full budget: there, the speeds on the
# pages should be those of a computer that does nothing else.
.PHONY: book
book: export BOOK_JOBS ?= $(if $(filter quick,$(PONG_BUDGET)),2,1)
book: $(VENV) ## execute the notebooks and build the HTML pages
# The cache knows the text of the notebooks it has executed, but neither their budget
# nor the package that they import; nor does Sphinx know what our extensions say.
	@state="$(PONG_BUDGET) $$(cat content/pong/*.py content/pong/data/*.* content/_extensions/*.py | cksum)"; \
	[ "$$(cat _build/state 2>/dev/null)" = "$$state" ] || rm -rf $(MADE); \
	mkdir -p _build && echo "$$state" >_build/state
	@$(BUILD) -n -W --keep-going
	@echo
	@echo "The book is in $(HTML): open index.html there, or serve it:"
	@echo "  $(BIN)/python -m http.server --directory $(HTML) 8000"
	@echo "and open http://localhost:8000"

# The book is executed on the quick budget. Where notebooks run in other places, some
# seconds of training are enough.
.PHONY: test
test: export PONG_BUDGET = 5
test: $(VENV) system-packages ## run every check
	@$(BIN)/python -m pytest -n $(TEST_JOBS) $(PYTEST_FLAGS)

.PHONY: lab
lab train record: export PONG_BUDGET = $(or $(BUDGET),full)
lab: $(VENV) ## open the notebooks in JupyterLab, on the full budget
	@$(BIN)/jupyter lab --notebook-dir=content \
	    $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_FLAGS)

.PHONY: train
train: export MPLBACKEND = agg
train: $(VENV) ## run "Train to win" as a program, on the full budget
	@mkdir -p _build
	@$(BIN)/jupytext --quiet --to py:percent content/train-to-win.md --output _build/train-to-win.py
	@cd content && "$(CURDIR)/$(BIN)/python" ../_build/train-to-win.py

# What the pages show as recorded. The programs say what each verb takes.
.PHONY: record
record: $(VENV) ## record anew most of what the pages show (a night on two cores)
	@export RECORD_DATE="$$(date +%F)" RECORD_COMMIT="$$(git describe --always --dirty 2>/dev/null)"; \
	cd scripts && set -e; for part in "pong_from_pixels reinforce" \
	    "train_to_win runs plain agent finish evaluation games" "ppo_in_numpy rally" "what_helped ablations" \
	    "what_the_critic_brings pairs parts ablations discount average more_runs not_sticky speed" \
	    "scale_out scale_out" "play traces weights ages rallies" "what_it_needs erasing variants points openings"; do \
	    set -- $$part; program=$$1; shift; ../$(BIN)/python $$program.py "$$@"; done; \
	echo "Recorded in $$((SECONDS / 3600)) hours and $$((SECONDS / 60 % 60)) minutes."

.PHONY: bench
bench: $(VENV) $(PEERS) ## compare speed, other agents (MINUTES=10 each), and pages
	@$(BIN)/python scripts/train_to_win.py speed
	@MINUTES=$(MINUTES) $(PEERS:installed=bin/python) scripts/what_helped.py bench
	@$(MAKE) --no-print-directory lighthouse

# PurgeCSS leaves out the nine tenths of the theme's style rules that no page uses.
PURGE = npx --yes purgecss@7 --content '*.html' '_static/*.js' '_static/scripts/*-theme.js' \
    _static/scripts/bootstrap.js --safelist show showing fade collapse collapsing mjx-container
.PHONY: light
light: book ## the same pages with smaller style sheets, for publishing (needs Node.js)
	@cd $(HTML) && $(PURGE) --css '_static/styles/*.css' --output _static/styles/ && \
	    $(PURGE) --css '_static/*.css' --output _static/

.PHONY: lighthouse
lighthouse: light system-packages ## measure how fast and how usable the pages are (needs Node.js)
	@PYTHONPATH=tests $(BIN)/python scripts/lighthouse.py

.PHONY: notebooks
notebooks: $(VENV) ## write the package's modules and the .ipynb files from the .md files
	@$(BIN)/python scripts/export.py
	@set -e; cd content; for source in $(notdir $(NOTEBOOKS)); do \
	    echo "$$source"; new="$${source%.md}.new.ipynb"; \
	    ../$(BIN)/jupytext --quiet --to ipynb --set-kernel python3 --output "$$new" --execute "$$source"; \
	    ../$(BIN)/nbstripout --keep-count --extra-keys metadata.language_info.version "$$new"; \
	    mv "$$new" "$${source%.md}.ipynb"; \
	done

# jupytext starts ruff by its name. The way through .ipynb and back makes each .md what
# JupyterLab would save.
.PHONY: format
format: $(VENV) ## format the code in notebooks, scripts, and tests
	@$(BIN)/ruff format tests scripts
	@$(BIN)/ruff check --fix --quiet tests scripts
	@cd content && PATH="$(CURDIR)/$(BIN):$$PATH" jupytext --quiet --pipe-fmt py:percent --pipe "ruff format -" $(notdir $(NOTEBOOKS))
	@$(BIN)/python scripts/export.py

.PHONY: picture
picture: $(VENV) ## redraw the picture of README.md with the functions of the chapter
	@$(BIN)/python -m pytest tests/test_picture.py --mpl-generate-path=content/images

.PHONY: alone
alone: ## run each notebook alone in an empty folder, with PYTHON as it is
	@set -e; for notebook in content/*.ipynb; do \
	    folder=$$(mktemp -d); \
	    cp "$$notebook" "$$folder"; \
	    echo "$$notebook"; \
	    "$(PYTHON)" -m nbconvert --to notebook --execute --inplace "$$folder"/*.ipynb; \
	    rm -r "$$folder"; \
	done

.PHONY: binder
binder: $(VENV) ## build the image that Binder would build of this commit (needs Docker)
	@$(BIN)/jupyter-repo2docker --no-run "file://$(CURDIR)"

.PHONY: linkcheck
linkcheck: book ## check that links to other sites still work (needs the internet)
	@$(BUILD) --builder linkcheck

LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --custom-compile-command "make lock" --extra notebook pyproject.toml
.PHONY: lock
lock: $(VENV) ## make requirements*.txt from pyproject.toml, with the newest releases
	@$(LOCK) --upgrade --group dev --output-file requirements-dev.txt
	@$(LOCK) --upgrade --constraint requirements-dev.txt --output-file requirements.txt

.PHONY: repository
repository: ## set the project's address everywhere: make repository URL=https://github.com/you/your-copy
	@set -e; echo "$(URL)" | grep -v '\.git$$' | grep -Eq '^https://github.com/[^/ ]+/[^/ ]+$$' || \
	    { echo "say which: make repository URL=https://github.com/you/your-copy"; exit 2; }
	@set -e; old=$$(sed -n 's|^  url: https://github.com/||p' _config.yml); new="$(URL)"; \
	files="_config.yml CITATION.cff README.md $$(grep -l "$$old" content/*.md content/*.ipynb)"; \
	for file in $$files; do sed -i.bak "s|$$old|$${new#https://github.com/}|g" $$file; rm $$file.bak; done

.PHONY: clean
clean: ## remove .venv and what was made, but for checkpoints and recordings
	rm -rf $(MADE) .venv content/video .pytest_cache
	find . \( -name __pycache__ -o -name .ipynb_checkpoints -o -name .ruff_cache \) -prune -exec rm -rf {} +

# Set-up, used by the commands above.

# pip brings uv, which installs the rest in seconds.
$(VENV): $(REQUIREMENTS)
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
	    { echo "Python 3.11 to 3.14 is needed: make PYTHON=python3.13 ..."; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || $(MAKE) --no-print-directory apt PACKAGES="$$("$(PYTHON)" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
	@rm -rf .venv
	@"$(PYTHON)" -m venv .venv
	@echo "Installing $(REQUIREMENTS) into .venv ..."
	@sed -n '/^uv==/,/[^\\]$$/p' requirements-dev.txt >.venv/uv.txt
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement .venv/uv.txt
	@$(BIN)/uv pip install --quiet --python .venv $(if $(filter %.txt,$<),\
	    --require-hashes --requirement $<,--group dev ".[notebook]")
	@$(BIN)/uv pip install --quiet --python .venv --no-deps --no-build-isolation --editable .
	@rm -rf $(MADE)  # with other versions
	@echo "$(CURDIR)" >$@

$(PEERS): requirements-peers.txt $(VENV)
	@"$(PYTHON)" -m venv .venv/peers
	@echo "Installing $< into .venv/peers ..."
	@.venv/peers/bin/python -m pip install --quiet --requirement $<
	@touch $@

# Debian and Ubuntu: a virtual screen (apt.txt), and for the browser tests Chromium and
# what Playwright's own driver needs. Ubuntu has Chromium only as a snap, so it gets Chrome.
# On other systems the tests use the Chrome that is there.
.PHONY: system-packages
system-packages:
	@set -e; if command -v apt-get >/dev/null; then \
	    packages="$$(grep -v '^#' apt.txt | tr '\n' ' ') libatomic1"; \
	    command -v google-chrome >/dev/null || { grep -qs '^ID=ubuntu' /etc/os-release && chrome=1; } || \
	        packages="$$packages chromium"; \
	    dpkg -s $$packages >/dev/null 2>&1 || $(MAKE) --no-print-directory apt PACKAGES="$$packages"; \
	    [ -z "$$chrome" ] || $(BIN)/python -m playwright install chrome; \
	fi

.PHONY: apt
apt:
	@command -v apt-get >/dev/null || { echo "please install $(PACKAGES) with your system's package manager"; exit 2; }
	@set -e; sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	echo "Installing $(PACKAGES) with apt-get ..."; \
	$$sudo apt-get -o DPkg::Lock::Timeout=600 update -qq; \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends $(PACKAGES) >/dev/null
