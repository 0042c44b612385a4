# `make demo` and `make test` set everything up on a fresh machine that has Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test quick faults coverage lint clean

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/ept-fed simulate

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Nearly every test writes files, so they are in memory where it has room. The files of failed tests are kept there.
FILES := $(shell test "$$(df -Pk /dev/shm 2>/dev/null | awk 'END {print $$4}')" -gt 4000000 && echo /dev/shm || echo /tmp)
# Compiled modules are kept even if the environment says otherwise: each test process would compile them again.
TEST_ENVIRONMENT := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1
# One thread each: with as many test processes as cores, more only wait for each other. A file's tests run in one process,
# and those that take longest start first.
PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder --durations=10
define PYTEST
folder=$$(mktemp -d -p $(FILES) ept-XXXX) && chmod 711 $$folder && \
	$(TEST_ENVIRONMENT) TMPDIR=$$folder $(BIN)/python -m pytest --basetemp=$$folder/t $(1) && rm -r $$folder
endef

# mypy runs beside the tests, which wait for processes for a quarter of their time; what it found is printed after them.
test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@types=$$(mktemp) && { $(BIN)/mypy >$$types 2>&1 & } && \
	{ { $(call PYTEST,$(PARALLEL) -m "unit or integration"); }; tests=$$?; \
	wait $$!; typed=$$?; cat $$types; rm $$types; exit $$((tests + typed)); }

# What developers run all day: neither processes nor sockets.
quick: $(READY)
	$(call PYTEST,$(PARALLEL) -m unit)

# What a deployment and a simulation survive, with the minutes of waiting and the many kills that it takes.
faults: $(READY)
	$(call PYTEST,-m faults)

# Lines and branches of the four packages that `make test` reaches, in all its processes.
coverage: $(READY)
	$(BIN)/coverage erase
	$(call PYTEST,$(PARALLEL) -m "unit or integration" --cov --cov-report=)
	$(BIN)/coverage report --skip-covered --sort=cover

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
