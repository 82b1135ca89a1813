# Needs Python 3.11 or newer, make and access to a package index; everything else goes into .venv.
ifeq ($(origin PYTHON),undefined)
PYTHON = $(eval PYTHON := $(or $(shell python3 benchmarks/fastest_python.py 2> /dev/null),python3))$(PYTHON)
endif
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# a second environment, for packages that need torchvision, on a newer torch
PLUGS       := .venv-integrations
# rooms of tests that it runs beside those of the plugs, or all
SUITE       ?= layers compat
# packages to be taken as new as they come instead of as pinned, or all
NEWEST      ?=
empty       :=
PLUGS_STAMP := $(PLUGS)/.installed$(subst $(empty) ,,$(addprefix +,$(NEWEST)))

# one more, for another torch than the pinned one
OTHER       := .venv-torch
TORCH       ?= newest
NIGHTLY     := https://download.pytorch.org/whl/nightly/cpu
PYPI        := https://pypi.org/simple
# which tests run there: all, or files and folders
ROOMS       ?=
# and for the wheel; and the date of what is in it, so that it is the same whenever it is made
INSTALLED   := .venv-wheel
PLAT         = --only-plat --plat manylinux_2_28_$$(uname -m)
DATED        = PATH=$(CURDIR)/$(BIN):$$PATH SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2> /dev/null || echo 1580601600)}
FROM_WHEEL   = env -u PYTHONPATH OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(INSTALLED)/bin/python

.PHONY: run test test-integrations test-torch test-wheel pytest lint bench gpu aarch64 classes wheel docs notebooks clean

run: $(STAMP)            ## train a byte model on embedded text, evaluate it, let it write
	$(BIN)/foveal train bytes-hourglass
	@echo
	$(BIN)/foveal evaluate latest
	@echo
	$(BIN)/foveal generate latest --prompt "def " --seed 1
	@echo
	$(BIN)/foveal report latest

test: $(STAMP)           ## style, types, import contract, and beside them every test
	@$(MAKE) --no-print-directory -j2 lint pytest

# byte code is kept even where the environment says not to: the tests start many processes
pytest: $(STAMP)
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal

test-integrations: $(PLUGS_STAMP) ## the plugs beside their packages, SUITE=all with every test
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(PLUGS)/bin/python -m pytest -n 2 --dist worksteal \
	  $(if $(filter all,$(SUITE)),tests,tests/integrations tests/test_docs.py $(addprefix tests/,$(SUITE)))

test-torch:              ## every test on another torch: TORCH=2.11.0, TORCH=newest, TORCH=nightly; ROOMS as below
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv --clear $(OTHER)
	@grep -v -e '^torch==' -e '^natten==' constraints.txt > $(OTHER)/constraints.txt || true
	$(OTHER)/bin/python -m pip install --quiet -c $(OTHER)/constraints.txt -e ".[dev]" $(if $(filter newest,$(TORCH)),\
	  --upgrade torch,$(if $(filter nightly,$(TORCH)),--pre torch --index-url $(NIGHTLY) --extra-index-url $(PYPI),torch==$(TORCH)))
	$(OTHER)/bin/python -m pip install --quiet --no-deps -r peers.txt
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(OTHER)/bin/python -m pytest -n 2 --dist worksteal $(ROOMS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)          ## time attention beside dense attention on this machine
	$(BIN)/foveal bench

gpu: $(STAMP)            ## on a CUDA machine: tests, self-checks, benchmarks, profiles, docs/gpu.md
	$(BIN)/python benchmarks/gpu.py $(PIECES)

aarch64: $(STAMP)        ## the kernel for ARM, cross-compiled and tested under an emulator
	@command -v aarch64-linux-gnu-g++ qemu-aarch64 > /dev/null || \
	  { echo "needs a cross compiler and an emulator: apt install g++-aarch64-linux-gnu qemu-user"; exit 1; }
	$(BIN)/python -m pytest tests/ops/test_native.py -m kernel --emulate aarch64 -s

classes: $(STAMP)        ## the tests of ops in each class of processors that this one can run
	$(BIN)/python tests/classes.py

wheel: $(STAMP)          ## a wheel with the kernel of every class inside, and the sdist, in dist/; Linux
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[release]"
	rm -rf dist
	@# the sdist and the wheel that it makes; then the wheel of this folder, which must be the same
	$(DATED) FOVEAL_WHEEL=native $(BIN)/python -m build --outdir dist/built
	$(DATED) FOVEAL_WHEEL=native $(BIN)/python -m build --wheel --outdir dist/tree
	$(DATED) $(BIN)/auditwheel repair $(PLAT) -w dist dist/built/*.whl
	$(DATED) $(BIN)/auditwheel repair $(PLAT) -w dist/again dist/tree/*.whl
	mv dist/built/*.tar.gz dist
	$(BIN)/auditwheel show dist/*.whl
	$(BIN)/python tests/packaging/check_wheel.py dist/*.whl dist/again/*.whl

test-wheel: $(STAMP)     ## every test against the wheel in dist/, installed where no source is; ROOMS="tests/ops"
	@ls dist/*.whl > /dev/null 2>&1 || $(MAKE) --no-print-directory wheel
	rm -rf $(INSTALLED) && $(PYTHON) -m venv $(INSTALLED)
	$(INSTALLED)/bin/python -m pip install --quiet -c constraints.txt "$$(echo dist/*.whl)[dev]"
	$(INSTALLED)/bin/python -m pip install --quiet --no-deps -r peers.txt
	$(FROM_WHEEL) -c "import foveal, sys; sys.exit(not foveal.__file__.startswith(sys.prefix) and foveal.__file__)"
	$(FROM_WHEEL) -m pytest -n 2 --dist worksteal $(ROOMS)

docs: $(STAMP)           ## the documentation as a site, in site/
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open site/index.html"

notebooks: $(STAMP)      ## run the notebooks of docs/notebooks again, and keep what they show
	$(BIN)/python docs/run_notebooks.py

CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "foveal needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }

$(STAMP): pyproject.toml constraints.txt peers.txt
	@$(CHECK_PYTHON)
	@echo "Setting up $(VENV) with $(PYTHON) (about a minute; PyTorch is large) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --no-deps -r peers.txt
	@# a source package, built beside torch without its CUDA part in a few seconds
	$(BIN)/python -m pip install --no-deps --no-build-isolation -c constraints.txt natten || \
	  echo "natten cannot be built here; the tests beside it are skipped"
	@touch $(STAMP)

$(PLUGS_STAMP): pyproject.toml constraints-integrations.txt peers.txt
	@$(CHECK_PYTHON)
	@echo "Setting up $(PLUGS) (several GB where the index has builds with CUDA alone) ..."
	$(PYTHON) -m venv $(PLUGS)
	@rm -f $(PLUGS)/.installed*
	@grep -v -e '^#' $(if $(filter all,$(NEWEST)),-e '',$(foreach one,$(NEWEST),-e '^$(one)==')) \
	  constraints-integrations.txt > $(PLUGS)/constraints.txt || true
	$(PLUGS)/bin/python -m pip install --progress-bar on -c $(PLUGS)/constraints.txt \
	  $(if $(NEWEST),--upgrade --upgrade-strategy eager) torch torchvision -e ".[dev,integrations]"
	$(PLUGS)/bin/python -m pip install --no-deps -r peers.txt
	@touch $@

clean:
	rm -rf $(VENV) $(PLUGS) $(OTHER) $(INSTALLED) site dist .pytest_cache .mypy_cache .ruff_cache
