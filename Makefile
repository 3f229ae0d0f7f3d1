# Set-up and everyday commands. VENV names the virtual environment they use.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint types check lite1 fuzz site wheel clean

demo: $(VENV)/installed ## explain the sample image on the bundled model
	$(BIN)/ov-recipro explain examples/chelsea.jpg

test: $(VENV)/developing ## run all tests, three at a time, inference on one core each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/developing
	$(BIN)/mypy

check: lint types test

lite1: build/efficientnet-lite1/efficientnet-lite1.onnx ## a second real model, for tests

fuzz: $(VENV)/developing ## fuzz what reads files; SECONDS for each target, or TARGET alone
	$(BIN)/python -m pip install --quiet 'atheris>=3'
	$(BIN)/python tools/fuzz.py $(TARGET) --seconds $(or $(SECONDS),60)

site: build/site-env/ready ## the documentation as a site, build/site/index.html
	NO_MKDOCS_2_WARNING=1 build/site-env/bin/python -m mkdocs build --quiet

wheel: $(VENV)/developing
	$(BIN)/python -m build --outdir dist

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "Installing ov-recipro into $(VENV) ..."
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/developing: $(VENV)/installed
	@echo "Installing the test tools into $(VENV) ..."
	$(BIN)/python -m pip install --quiet --group dev
	$(BIN)/python -m pip install --quiet --no-deps rapidocr==3.10.0 # its models alone
	@touch $@

# Exporting needs torch, which the package never does: an environment of its own.
build/export-env/ready:
	$(PYTHON) -m venv build/export-env
	build/export-env/bin/python -m pip install --quiet --upgrade pip
	build/export-env/bin/python -m pip install --quiet --requirement tools/export-requirements.txt
	@touch $@

# The site's tools, and the package, whose commands it describes.
build/site-env/ready: pyproject.toml
	$(PYTHON) -m venv build/site-env
	build/site-env/bin/python -m pip install --quiet --upgrade pip
	build/site-env/bin/python -m pip install --quiet --editable . --group site
	@touch $@

build/efficientnet-lite1/efficientnet-lite1.onnx: build/export-env/ready
	build/export-env/bin/python tools/export_efficientnet_lite.py --variant 1 --float32 \
	    --labels models/efficientnet-lite0/labels.txt --output $(@D)

clean:
	rm -rf build dist .venv
