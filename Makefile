# make help lists the targets. Each sets up what it needs once: a stamp in $(VENV) says what is there.

PYTHON    ?= python3
VENV      ?= .venv
# Installed before everything that depends on torch. The exact pin takes the CPU build where the machine offers one.
TORCH     ?= torch==2.13.0
PIP_FLAGS ?=
# What is handed on to the command: make study ARGS="--claims axes", make test ARGS="-k moments"
ARGS      ?=

PY  := $(VENV)/bin/python
PIP := $(PY) -m pip install $(PIP_FLAGS)

KERNELS := $(wildcard src/gammabeta/kernels/cpu/*)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: study test test-all sanitize census bench lint docs site dist clean help

study: $(VENV)/.study ## run the first look: report.html and results.json in gammabeta-study/
	$(VENV)/bin/gammabeta study --first-look $(ARGS)

test: $(VENV)/.test ## run the tests but for the long tail
	$(PY) -m pytest -n auto -m "not slow" $(ARGS)

test-all: $(VENV)/.test ## run all tests
	$(PY) -m pytest -n auto $(ARGS)

sanitize: $(VENV)/.test build/sanitized/.installed ## run the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	PYTHONPATH=$(CURDIR)/build/sanitized/site GAMMABETA_KERNELS=1 ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  $(PY) -m pytest -n 2 $(or $(ARGS),tests/conformance tests/kernels/cpu)

census: $(VENV)/.test ## check that healthy architectures and recipes raise no alarm: dated files in build/census/
	$(PIP) --no-deps timm torchvision segmentation_models_pytorch torch_geometric
	@mkdir -p build/census
	$(PY) -m tests.census.recipes --out build/census
	$(PY) -m tests.census.architectures --out build/census $(ARGS)

bench: $(VENV)/.study ## time ours beside torch's: dated tables in benchmarks/results/
	$(VENV)/bin/gammabeta bench --out benchmarks/results $(ARGS)

lint: $(VENV)/.dev ## ruff, its formatting, mypy, and clang-format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run --Werror src/gammabeta/kernels/cpu/*.cpp src/gammabeta/kernels/cpu/*.h

docs: $(VENV)/.study ## write the generated pages of docs/ again
	$(PY) docs/generate.py $(ARGS)

dist: $(VENV)/.torch ## write the sdist and the wheel without kernels to dist/; .github/workflows/wheels.yml builds the others
	$(PIP) "setuptools>=77" wheel ninja build
	$(PY) -m build --no-isolation --sdist
	GAMMABETA_KERNELS=0 $(PY) -m build --no-isolation --wheel

site: $(VENV)/.site ## build the documentation's site in build/site/html; a warning is an error
	$(PY) docs/site/staging.py build/site/source
	$(PY) -m sphinx -W -n --keep-going -b html -c docs/site -d build/site/doctrees build/site/source build/site/html $(ARGS)

clean: ## remove the virtual environment and what tools and builds left
	rm -rf $(VENV) build dist src/*.egg-info src/gammabeta/kernels/*.so .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'Variables: PYTHON (3.10 or newer), VENV, TORCH, PIP_FLAGS, ARGS (handed on to the command)'

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"gammabeta needs Python 3.10 or newer, $(PYTHON) is {sys.version.split()[0]}: name another with PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	@touch $@

# The last line says where the kernels could not be built.
$(VENV)/.study: pyproject.toml setup.py $(KERNELS) $(VENV)/.torch
	$(PIP) "setuptools>=77" wheel
	$(PIP) --no-build-isolation --editable ".[study]"
	@$(PY) -c 'import gammabeta'
	@touch $@

# gammabeta is there: what these add are its extras, without building it again.
$(VENV)/.test: $(VENV)/.study
	$(PIP) "gammabeta[test]"
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) "gammabeta[dev]"
	@touch $@

$(VENV)/.site: $(VENV)/.study
	$(PIP) "gammabeta[docs]"
	@touch $@

build/sanitized/.installed: pyproject.toml setup.py $(KERNELS) $(wildcard src/gammabeta/*.py src/gammabeta/*/*.py src/gammabeta/*/*/*.py) $(VENV)/.test
	rm -rf build/sanitized/site
	GAMMABETA_SANITIZE=1 GAMMABETA_KERNELS=1 CXX=$(CXX) $(PIP) --no-build-isolation --no-deps --target build/sanitized/site .
	@touch $@
