# Needs make and Python 3.11 or newer, nothing else. `make` alone lists the targets.

VENV   = .venv
BIN    = $(VENV)/bin
RUN    = runs/demo

# Another interpreter: make test PYTHON=/path/to/python3.12
PYTHON =

# What `make demo` trains, and how.
DEMO_DATA     = digits
DEMO_TRAIN    = --recipe vae --likelihood normal --latent 8 --hidden 256,128 --epochs 100 --schedule cosine --beta-warmup 10 --seed 0
DEMO_EVALUATE = --samples 500
DEMO_REPORT   =

# Options of `make bench`, such as BENCH='--only mlp iwae'.
BENCH =

# Options of `make gpu`, such as GPU='--only mlp-128'.
GPU =

# Options of the tests, such as TESTS='-k normal --last-failed', or TESTS='-n 0' for one process.
TESTS =

# Rows of `make tables`, such as ROWS='one-layer vamp'; all unless given.
ROWS =

# constraints.txt goes with every install: pip is never asked for a torch without its version.
# --no-compile: the files that are used get compiled when they are used, which halves the install.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL = help
.PHONY: help install demo test bench guard gpu tables lint format clean

help: ## list the targets
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/\1	\2/p' Makefile | while IFS='	' read -r name what; do \
		printf '  %-8s  %s\n' "$$name" "$$what"; done

install: $(VENV)/.installed-dev ## make .venv and install xhat with all that its tests need

demo: $(VENV)/.installed-demo ## train a variational autoencoder on the bundled digits and write a page about it
	rm -rf $(RUN)
	$(BIN)/xhat train $(DEMO_DATA) $(DEMO_TRAIN) --out $(RUN)
	$(BIN)/xhat evaluate $(RUN) $(DEMO_EVALUATE)
	$(BIN)/xhat report $(RUN) $(DEMO_REPORT)
	@echo "The page: $(CURDIR)/$(RUN)/report.html"

# A process for each core, four at most. What Python compiles of the sources is kept in .venv, also where Python was told to keep
# nothing: the programs that the tests start would each compile torch anew.
test: lint ## install, check the style, the types and the floors, run every test
	PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX="$(CURDIR)/$(VENV)/bytecode" \
		$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(TESTS)

bench: $(VENV)-bench/.installed ## install the libraries to compare with, measure the speed, write benchmarks/speed.md (20 minutes)
	$(VENV)-bench/bin/python -m benchmarks.speed $(BENCH)

guard: $(VENV)/.installed-dev ## is a step as quick as it was on this machine? (1 minute, idle please; the first time stores what it finds)
	$(BIN)/python -m benchmarks.speed.guard

gpu: $(VENV)/.installed-dev ## check and time everything on a machine with CUDA, write benchmarks/gpu.md (8 minutes at most)
	$(BIN)/python -m benchmarks.gpu $(GPU)

tables: $(VENV)-bench/.installed ## train and measure the published tables' rows that are not there yet, write benchmarks/tables.md
	$(VENV)-bench/bin/python -m benchmarks.tables $(ROWS)

lint: $(VENV)/.installed-dev ## install, check the style, the types and the floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove build output, caches and the demo's run (.venv and your own runs stay)
	rm -rf build dist $(RUN) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps: an install is repeated when what it was made from has changed.
$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing xhat and what its tests need into $(VENV)"
	$(INSTALL) -e '.[dev]'
	@touch $(VENV)/.installed-demo $@

$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing xhat and what the demo needs into $(VENV)"
	$(INSTALL) -e '.[sklearn]'
	@touch $@

# An environment of its own: the peers are no part of what xhat is developed with. Dependency groups need a newer pip.
$(VENV)-bench/.installed: pyproject.toml constraints.txt benchmarks/bench-constraints.txt
	@$(MAKE) --no-print-directory VENV=$(VENV)-bench $(VENV)-bench/bin/pip
	@echo "Installing xhat and the libraries that it is measured against into $(VENV)-bench"
	$(VENV)-bench/bin/python -m pip install --quiet --disable-pip-version-check -c benchmarks/bench-constraints.txt --upgrade pip
	$(VENV)-bench/bin/python -m pip install --quiet --no-compile -c constraints.txt -c benchmarks/bench-constraints.txt \
		-e '.[sklearn,flows]' --group bench
	@touch $@

$(BIN)/pip:
	@for python in $(PYTHON) python3.11 python3; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Making $(VENV) with $$python"; \
			"$$python" -m venv $(VENV) && exit 0; \
			echo "$$python cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)" >&2; \
			exit 1; \
		fi; \
	done; \
	echo "xhat needs Python 3.11 or newer, and found none; name one by 'make PYTHON=/path/to/python3.11 ...'" >&2; exit 1
