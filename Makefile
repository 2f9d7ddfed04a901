# make demo    pull the data, start the server with the default checkpoint, open its page in a browser
# make repro   pull the data, run every stage, say which results differ from the committed ones
# make test    check the style and run the tests
# make lab     JupyterLab on the notebooks; saving one leaves Git and DVC clean
# make setup   only install, into .venv
# make lint    only check the style
# make train   make the default checkpoint again, from nothing: hours (training/dvc.yaml)
# make gpu     measure on a GPU, in eight minutes, with the Python that has torch: no set-up, no network
# make release-check  download the released checkpoint, check it, hear and judge it: reports/release.html
# make promote put the checkpoint that was trained in training/out into data/ and into the store
# make s3      keep the data in a bucket: make s3 URL=s3://bucket/prefix; make s3 URL= goes back
#
# Every other target first installs into .venv what constraints.txt says; the second time there is nothing
# to do. Another Python: make PYTHON=/path/to/python3 TARGET. Packages come from wherever pip is
# configured to find them. In an environment of your own (environment.yml) leave make out: its commands
# are in docs/gpu-and-docker.md.

SHELL  := /bin/bash
PYTHON ?= python3
VENV   := .venv
STAMP  := $(VENV)/installed
# The scripts of an environment hold its path: in a folder that was moved or copied it is made again.
MOVED  := $(shell [ ! -e $(STAMP) ] || [ "$$(cat $(STAMP))" = "$(CURDIR)" ] || echo moved)
# Before every command that needs the environment.
WITH   := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"

export DVC_NO_ANALYTICS        := 1
export PYTHONHASHSEED          := 0
export PYTHONDONTWRITEBYTECODE := 1

# What makes a repository of an unpacked archive (a ZIP of GitHub or Zenodo), which has no .git.
ADOPT := git init -q && git add -A && git -c user.name=archive -c user.email=archive@localhost commit -qm archive

.PHONY: help setup demo repro test lint lab train gpu release-check promote s3 repository moved
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \(make [a-z0-9-]* .*\)/\1/p' Makefile

setup: $(STAMP)

repository:
	@git rev-parse --git-dir >/dev/null || { printf '%s\n    %s\n' >&2 \
	  'DVC needs Git and a repository: Git says above what is wrong. In an unpacked archive type:' '$(ADOPT)'; exit 1; }

# On a free port of this machine alone, until interrupted.
demo: repository $(STAMP)
	@[ -e data ] || $(WITH) dvc pull data.dvc
	$(WITH) higgs serve --port 0 --open

# What was added to data/ stops the pull; what was changed is named by `verify`, too.
repro: repository $(STAMP)
	@$(WITH) dvc pull data.dvc || { $(WITH) python -m higgs.workflow.verify data.dvc && printf '%s\n    %s\n' \
	  'A file of your own in data/ is kept by the line below; --force would delete it.' \
	  '$(VENV)/bin/dvc add data && make repro' >&2; exit 1; }
	@$(WITH) python -m higgs.workflow.verify data.dvc
	$(WITH) dvc repro
	@$(WITH) python -m higgs.workflow.verify dvc.lock
	@$(WITH) python -m higgs.workflow.page
	@$(WITH) python -m higgs.workflow.speed
	@$(WITH) python -m higgs.workflow.lock

test: repository lint
	@[ -e data ] || $(WITH) dvc pull data.dvc
	$(WITH) python -m pytest

lint: $(STAMP)
	$(WITH) ruff check .

lab: repository $(STAMP)
	@[ -e data ] || $(WITH) dvc pull data.dvc
	JUPYTER_CONFIG_PATH="$(CURDIR)/.jupyter" $(WITH) jupyter lab

# A line is stages one after another; two lines run at once, each job with one thread. A status of 255,
# DVC's, would make xargs leave the other line behind.
SIDE_BY_SIDE := xargs -P 2 -L 1 sh -c 'dvc --wait-for-lock --cd training repro -s "$$@" || exit 1' dvc

# On another kind of processor the checkpoint is another one: no failure. README.md is the model card.
SAME := diff -rq -x README.md data/checkpoints/nano training/out/nano \
  && echo 'training/out/nano is data/checkpoints/nano, byte for byte' \
  || echo 'training/out/nano is not data/checkpoints/nano: made on another kind of processor, or by other code'

# A job that was stopped goes on; what is finished stays until its file in training/out is deleted.
train: repository $(STAMP)
	@[ -e data ] || $(WITH) dvc pull data.dvc
	$(VENV)/bin/python -m pip install --no-input --disable-pip-version-check \
	  -c constraints.txt -e '.[test,train]'
	$(WITH) dvc --cd training repro quantizer
	printf '%s\n' model 'decoder encoder' | $(WITH) $(SIDE_BY_SIDE)
	printf '%s\n' 'augmented cloning' finished_decoder | $(WITH) $(SIDE_BY_SIDE)
	$(WITH) dvc --cd training repro
	@$(SAME)

# For a machine that brings its own torch, nothing is installed; a GPU's time is short.
gpu:
	PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(if $(wildcard $(STAMP)),$(VENV)/bin/python,$(PYTHON)) -m benchmarks.gpu $(ARGS)

# ARGS="--seed-tts FOLDER" and others: python -m release_check --help. Stopped, it goes on.
release-check: repository $(STAMP)
	@[ -e data ] || $(WITH) dvc pull data.dvc
	$(WITH) python -m release_check $(ARGS)

# The store is filled afresh, so that it holds what data.dvc names and nothing else.
promote: $(STAMP)
	rm -rf training/out/nano
	$(WITH) python -m training.nano.assemble --parts training/out --out training/out/nano
	rm -rf data/checkpoints/nano
	mkdir -p data/checkpoints
	cp -R training/out/nano data/checkpoints/nano
	$(WITH) python -m training.evaluation.table --card training/model-card.md --checkpoint training/out/nano
	cp training/model-card.md data/checkpoints/nano/README.md
	$(WITH) dvc add data
	rm -rf .dvc-store/files
	$(WITH) dvc push --remote embedded data.dvc
	@echo "Now: make repro, then commit data.dvc, .dvc-store, dvc.lock and the metrics."

# Written to .dvc/config.local, which Git ignores; keys are written nowhere. URL has to be in the
# command, because another URL may be in the environment.
s3: $(STAMP)
	@case '$(origin URL):$(URL)' in \
	  'command line:s3://'?*) \
	    $(WITH) dvc remote modify --local s3 url '$(URL)' && \
	    $(WITH) dvc remote modify --local s3 endpointurl $(if $(ENDPOINT),'$(ENDPOINT)',--unset) && \
	    $(WITH) dvc remote default --local s3 ;; \
	  'command line:') \
	    $(WITH) dvc remote default --local --unset ;; \
	  *) echo 'make s3 URL=s3://bucket/prefix [ENDPOINT=https://...], or make s3 URL= to go back' >&2; exit 1 ;; \
	esac
	@echo 'dvc pull and dvc push now use $(or $(URL),the store in the repository).'

# One command of pip for all that has dependencies, so that nothing can bring a second build of torch along, and one
# for the wheels of the judges, without theirs: only files of them are used. So pip misses some, and is right.
$(STAMP): constraints.txt pyproject.toml requirements-judges.txt $(MOVED)
	$(if $(MOVED),rm -rf $(VENV))
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || { \
	  command -v "$(PYTHON)" >/dev/null \
	    || { echo "$(PYTHON) is not there. Install Python 3.11 or later, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }; \
	  "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1); Python 3.11 or later is needed: make PYTHON=/path/to/python3" >&2; exit 1; }; \
	  "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null \
	    || { echo "$(PYTHON) cannot make environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	  echo "$(PYTHON) -m venv $(VENV)"; \
	  "$(PYTHON)" -m venv --clear $(VENV); }
	$(VENV)/bin/python -m pip install --no-input --disable-pip-version-check \
	  -c constraints.txt -e '.[test]'
	$(VENV)/bin/python -m pip install --no-input --disable-pip-version-check --no-deps -r requirements-judges.txt
	! $(VENV)/bin/python -m pip check | grep -v -i -e '^No broken' -f <(sed -n 's/^\([^#=]*\)==.*/^\1 /p' requirements-judges.txt)
	@echo "$(CURDIR)" > $@
