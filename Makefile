# Every target makes the virtual environment that it needs; all that must be there is Python >= 3.11 and make.

VENV       := .venv
PLAIN_VENV := .venv-plain
STAMP      := $(VENV)/.made
PLAIN_STAMP := $(PLAIN_VENV)/.made
TORCH      := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
PLAIN_DIR  ?= runs/plain-check

# Two processes with one thread each beat one process with two: most tests are small, or wait for a process of their own.
# --dist loadfile keeps what a file builds once (a trained run, a loaded world) in one process; tests/conftest.py orders files.
PYTEST     := $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=10

.DEFAULT_GOAL := help
.PHONY: help demo test check plain-check clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP) ## Align the shapes world on this CPU, end to end; writes runs/demo/report.html
	$(VENV)/bin/diffpo demo

test: $(STAMP) ## Run every test (ARGS="-m 'not slow'" for a quick round)
	@$(PYTEST) $(ARGS)

check: $(STAMP) ## Lint, format, types of the core rooms, and who imports whom
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" scripts/check.sh

plain-check: $(STAMP) $(PLAIN_STAMP) ## Show that exports give the same images in plain diffusers
	$(VENV)/bin/python scripts/plain_check.py make $(PLAIN_DIR)
	$(PLAIN_VENV)/bin/python scripts/plain_check.py compare $(PLAIN_DIR)

clean: ## Remove the virtual environments
	rm -rf $(VENV) $(PLAIN_VENV)

# torch comes first and pinned: unpinned it draws gigabytes of CUDA packages, and once there nothing replaces it.
$(STAMP): pyproject.toml constraints.txt
	@python=$$(scripts/find_python.sh) && echo "making $(VENV) with $$python" && "$$python" -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet $(TORCH)
	@$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[dev,bnb,tensorboard]'
	@touch $@

# Without torchvision and without diffpo: what a user has who only loads the result.
$(PLAIN_STAMP): constraints.txt
	@python=$$(scripts/find_python.sh) && echo "making $(PLAIN_VENV) with $$python" && "$$python" -m venv $(PLAIN_VENV)
	@$(PLAIN_VENV)/bin/python -m pip install --quiet $(TORCH)
	@$(PLAIN_VENV)/bin/python -m pip install --quiet -c constraints.txt diffusers transformers peft
	@touch $@
