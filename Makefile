# `make demo` and `make test` work from a fresh clone: each makes the virtual environment that it needs.
PYTHON ?= python3
EXTRAS := cpu,train,export,calibrate,openvino,tensorrt-rtx,ray,dev

# One process each: the native libraries of one room leave handlers behind that others trip over.
ROOMS := core cats export calibration benchmarks runtime

# Python started in this folder would take the sources in cats/ for the installed package.
export PYTHONSAFEPATH := 1

.PHONY: demo test lint cats-tiny bench clean

demo: .venv-demo/done  ## match two photos with the shipped model and draw demo.png
	.venv-demo/bin/cats-run assets/cats-tiny.onnx assets/astronaut.jpg assets/grace_hopper.jpg \
	  --points assets/astronaut.json -o demo.png
	@echo "demo.png: the same points of two portraits"

test: .venv/done lint  ## everything that runs without a GPU, on the installed package
	for room in $(ROOMS); do .venv/bin/pytest tests/$$room || exit; done

lint: .venv/done
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	cd .venv && bin/mypy --config-file ../pyproject.toml  # elsewhere mypy would take the folder cats/ for the package

CATS_SHARED ?= ../shared

cats-tiny: .venv/done  ## repeat the training of the shipped model (hours on 2 cores) and write it into assets/
	.venv/bin/cats-train --data categories:$(CATS_SHARED)/data/Caltech-101 --config tiny \
	  --val willow:$(CATS_SHARED)/data/PF-WILLOW --output runs/cats-tiny
	.venv/bin/python benchmarks/ship_tiny.py runs/cats-tiny/best.pt

bench: .venv/done  ## every backend side by side, into benchmarks/results/; nothing else may run beside it
	for model in cats-tiny resnet101; do .venv/bin/cats-bench $$model --int8 $(CATS_SHARED)/data/Caltech-101 \
	  -o benchmarks/results/bench-$$model.json --html benchmarks/results/bench-$$model.html || exit; done

SOURCES := $(shell git ls-files --cached --others --exclude-standard -- cats export runtime calibration assets benchmarks/suite pyproject.toml setup.py)

.venv-demo/done: $(SOURCES)
	test -d .venv-demo || $(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install --quiet --upgrade pip
	.venv-demo/bin/python -m pip install --quiet '.[cpu]'
	touch $@

.venv/done: $(SOURCES)
	test -d .venv || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf .venv .venv-demo build *.egg-info demo.png
