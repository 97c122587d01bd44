# Every target works from a fresh clone: it makes the environment it needs first and skips what is done.
PROFILE ?= default
NOTEBOOKS ?=
ARGS ?=
TORCH_INDEX ?=
IS_SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	if $$p -c '$(IS_SUPPORTED)' 2>/dev/null; then command -v $$p; break; fi; done)

BIN := .venv/bin
STAMP := .venv/.stamp
LINTED := saelib tests notebooks benchmarks tools
QUICK := tests/test_architecture.py tests/test_config.py tests/sae/test_losses.py tests/sae/test_dense.py \
	tests/sae/test_base.py tests/sae/test_architectures.py tests/sae/test_golden.py tests/sae/test_resample.py tests/study
# The notebooks are compared as a fresh clone would run them: in a data folder of assets and records alone, removed afterwards.
FRESH := home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && mkdir "$$home/data" \
	&& ln -s "$(CURDIR)/data/assets" "$(CURDIR)/data/recorded" "$$home/data" && ln -s "$(CURDIR)/notebooks" "$$home/notebooks" \
	&& export SAELIB_HOME="$$home" SAELIB_HEADLESS=1 HF_HUB_OFFLINE=1

# Where a test is marked slow: importing every other test file takes longer than most of these tests.
SLOW := grep -rl --include='test_*.py' 'mark\.slow' tests

# Two kinds of tests run side by side, several processes each: one thread a process, which does not spin while it waits.
# Whole files go to the processes, in the order of tests/helpers/order.py.
PATIENT := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
SPREAD := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
# Targets asked for together run in that order, also under -j; `test` alone runs two of them at once.
ifeq ($(MAKELEVEL),0)
.NOTPARALLEL:
endif
.PHONY: help workbook test quick lint unit slow browser peers interop nbval lab report record refresh assets venv lock clean clean-data

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | while IFS='	' read -r t d; do printf 'make %-11s %s\n' "$$t" "$$d"; done
	@printf '\nPROFILE=smoke|default|full|enwik8|llama2-7b (now %s), NOTEBOOKS="02 03", ARGS="--set lr=3e-4 --force"\n' '$(PROFILE)'
	@printf 'TORCH_INDEX=<url>  package index that torch alone comes from (a CPU or CUDA build), used when the environment is made\n'

workbook: venv ## run the notebooks of PROFILE, write data/PROFILE/{notebooks,results.csv,report}; finished work is skipped
	$(BIN)/python -m saelib run --profile $(PROFILE) $(NOTEBOOKS) $(ARGS)

report: venv ## write data/PROFILE/report again from what is there
	$(BIN)/python -m saelib report --profile $(PROFILE)

record: venv ## keep the finished run of PROFILE in the repository: notebooks, tables, figures, docs/findings.md (ARGS="--add 07": of one notebook)
	$(BIN)/python tools/record.py $(ARGS) $(PROFILE)

test: lint assets ## lint, unit tests, and every notebook executed and compared with its committed outputs
	@$(MAKE) --no-print-directory -j2 unit nbval || { echo "make test FAILED: see [unit] or [nbval] above"; exit 1; }
	@echo "make test: lint, unit tests and $(words $(wildcard notebooks/*.ipynb)) notebooks passed"

lint: venv ## ruff: rules and format of package, tests and notebooks
	$(BIN)/ruff check $(LINTED)
	$(BIN)/ruff format --check $(LINTED)

quick: venv ## the inner loop, under a minute: lint, the package's shape, formulas, architectures, the rules of verdicts
	$(BIN)/ruff check $(LINTED) && $(BIN)/ruff format --check $(LINTED)
	$(BIN)/python -m pytest -q $(QUICK) -m "not slow"

unit: venv assets ## the unit tests alone, but for those that need minutes
	$(PATIENT) $(BIN)/python -m pytest -q $(or $(ARGS),$(SPREAD) tests --ignore=tests/browser -m "not slow")

slow: venv assets ## the unit tests that need minutes: the embedded assets, whole notebooks, killed groups of processes
	$(PATIENT) $(BIN)/python -m pytest -q $(SPREAD) $$($(SLOW)) -m slow

browser: venv assets ## the browser of features driven in a real JupyterLab and Chromium; skipped with its reason where there is none
	@$(BIN)/python -m pip install --quiet -r tests/requirements-browser.txt || echo "make browser: Playwright could not be installed"
	$(BIN)/python -m pytest -q -rsP tests/browser || [ $$? -eq 5 ]  # 5: nothing to run, and the reason is printed

interop: peers ## round trips with the real SAELens, dictionary_learning and sparsify, in that environment
	$(PATIENT) .venv-peers/bin/python -m pytest -q -s tests/interop

peers: ## SAELens, dictionary_learning and sparsify in an environment of their own, .venv-peers
	@[ -x .venv-peers/bin/python ] || $(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python tools/install.py $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX)) \
		&& .venv-peers/bin/python -m pip install --quiet -c requirements.in -r benchmarks/requirements.txt \
		&& .venv-peers/bin/python -m pip uninstall --quiet -y torchvision

nbval: venv assets ## the notebooks alone, one process each, in order, from an empty data folder
	@$(FRESH); failed=""; for nb in notebooks/*.ipynb; do echo "== $$nb"; \
	$(PATIENT) $(BIN)/python -m pytest -q -o addopts= -p no:cacheprovider --nbval --nbval-current-env --nbval-cell-timeout 900 \
		--nbval-sanitize-with tests/nbval_sanitize.cfg "$$nb" || failed="$$failed $$nb"; done; \
	if [ -n "$$failed" ]; then echo "notebooks that failed:$$failed"; exit 1; fi

refresh: venv assets ## execute the source notebooks at smoke size and replace them in place, each only on success
	@$(FRESH); $(PATIENT) $(BIN)/python tools/refresh.py $(NOTEBOOKS)

lab: venv ## JupyterLab on a working copy of the notebooks in lab/ (delete a file there to have it copied anew)
	@mkdir -p lab && for nb in notebooks/*.ipynb; do [ -e "lab/$${nb##*/}" ] || cp "$$nb" lab/; done
	$(BIN)/jupyter lab --notebook-dir=lab $(ARGS)

assets: venv ## fetch and convert the embedded model and text (about 100 MB, once)
	@$(BIN)/python -m saelib assets

venv: $(STAMP) ## the environment in .venv, exactly as requirements*.txt pin it, every file checked by its hash
	@if [ -n "$(TORCH_INDEX)" ] && [ "$$(cat $(STAMP))" != "torch index: $(TORCH_INDEX)" ]; then \
		echo "error: .venv was made with '$$(cat $(STAMP))'; run 'make clean' before TORCH_INDEX=$(TORCH_INDEX)"; exit 1; fi

lock: ## write requirements*.txt, with hashes, from the versions in requirements.in (needs uv)
	$(PYTHON) tools/lock.py

$(STAMP): requirements.txt requirements-torch.txt requirements-cuda.txt
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c '$(IS_SUPPORTED)'; then \
		echo "error: the pinned requirements are for Python 3.11 to 3.13; found $(or $(PYTHON),none of them)." \
		"Install one, or say where it is: make PYTHON=/path/to/python3.12"; exit 1; fi
	@start=$$(date +%s); [ -x $(BIN)/python ] || $(PYTHON) -m venv .venv; \
	$(BIN)/python tools/install.py $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX)) || exit 1; \
	echo "torch index: $(or $(TORCH_INDEX),default)" > $(STAMP); \
	echo "environment installed in $$(( $$(date +%s) - start )) s (counted apart from the work)"

clean: ## remove the environment and caches; data/ and figures/ stay
	rm -rf .venv .ruff_cache .pytest_cache .hypothesis saelib.egg-info
	find saelib tests notebooks benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +

clean-data: ## remove data/PROFILE and what goes with it: only with PROFILE given on the command line
ifeq ($(origin PROFILE),command line)
	@case "$$PROFILE" in ""|recorded|assets|*/*|*.*) \
		echo "error: PROFILE='$$PROFILE': expected a profile's name, not a folder that every profile shares"; exit 1;; esac
	rm -rf "data/$$PROFILE" "data/$$PROFILE-sites" "data/$$PROFILE-recipe"
else
	@echo "error: say which: make clean-data PROFILE=<name>"; exit 1
endif
