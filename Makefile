# Two commands for a fresh machine: `make demo` and `make test`. They need Python 3.11, a C compiler and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PROTO := tachikoma/exec/v1/remote_execution.proto
# Where `make proto` writes.
OUT ?= shared

.PHONY: demo test test-cgroup2 test-container test-images sanitize fuzz check bench bench-spawn bench-admission bench-trust bench-events bench-output docs proto clean

# The whole system on this machine, with real work.
demo: $(VENV)/installed
	$(BIN)/tachikoma demo

# The tests, in an environment of their own.
test: $(VENV)/tox
	$(BIN)/tox run -e py

# The tests of confinement in a virtual machine that has only cgroup v2. Needs some packages; tests/vm/run names them.
test-cgroup2: .tox/py/bin/python
	tests/vm/run .tox/py/bin/python -m pytest --color no -p no:cacheprovider tests/confinement

# The same in real containers. Needs root and an installed docker engine, which it starts by itself.
test-container: .tox/py/bin/python
	tests/container/run .tox/py/bin/python -m pytest --color no -p no:cacheprovider tests/confinement

# Builds the images and uses docker/compose.yaml. Needs root and some packages; tests/container/images names them.
test-images:
	tests/container/images

.tox/py/bin/python: $(VENV)/tox
	$(BIN)/tox run -e py --notest

# The tests of confinement with a spawner built with sanitizers, and every warning an error.
sanitize: .tox/py/bin/python
	$(CC) -std=c11 -g -O1 -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Werror \
	    -fsanitize=address,undefined -fno-sanitize-recover=all -o .tox/sanitized-spawner worker/spawner/*.c
	TACHIKOMA_TEST_SPAWNER=$(abspath .tox/sanitized-spawner) .tox/py/bin/python -m pytest tests/confinement

# The parser of the spawner's requests, fuzzed under sanitizers.
fuzz:
	worker/spawner/fuzz/run

# Format, lint, types, layers, API definition.
check: $(VENV)/tox
	$(BIN)/tox run -e lint

# Latency of one command beside subprocess and plain Celery.
bench: $(VENV)/installed
	$(BIN)/python benchmarks/execute.py

# A confined start beside subprocess.run, as root.
bench-spawn: $(VENV)/installed
	$(BIN)/python benchmarks/spawn.py

# A decision of policy and an admission beside a round trip to Redis.
bench-admission: $(VENV)/installed
	$(BIN)/python benchmarks/admission.py

# Signing, verifying and handshakes beside an Execute.
bench-trust: $(VENV)/installed
	$(BIN)/python benchmarks/trust.py

# What the events for Flower add to an execution, in Redis commands and processor time.
bench-events: $(VENV)/installed
	$(BIN)/python benchmarks/events.py

# Memory of each process while a command writes very much.
BYTES ?= 10000000000
bench-output: $(VENV)/installed
	$(BIN)/python benchmarks/output.py --bytes $(BYTES)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tachikoma needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all]'
	touch $@

$(VENV)/tox: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'tox>=4.30'
	touch $@

# Rewrites the tables of the documentation that are generated from code.
docs: $(VENV)/installed
	$(BIN)/python docs/tables.py

# Needs grpcio-tools and mypy-protobuf (the extra `lint`).
proto:
	mkdir -p $(OUT)/tachikoma/exec/v1
	cd shared && $(PYTHON) -m grpc_tools.protoc -I . --python_out=$(abspath $(OUT)) --grpc_python_out=$(abspath $(OUT)) \
	    --mypy_out=quiet:$(abspath $(OUT)) --mypy_grpc_out=quiet:$(abspath $(OUT)) $(PROTO)
	@[ "$(abspath $(OUT))" = "$(abspath shared)" ] || cp shared/$(PROTO) $(OUT)/$(PROTO)

clean:
	rm -rf $(VENV) .tox build *.egg-info
