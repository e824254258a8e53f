# `make demo` and `make dev` are all that a fresh machine needs: Python 3.11 or newer, a C compiler, make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# What is tested: the working tree. CI tests the wheel: TEST_PYTHON=.tox/py/bin/python.
TEST_PYTHON ?= $(BIN)/python
# How many tests run at once. Most wait for processes, so there are more of them than processors.
TEST_PROCESSES ?= 3
# More arguments for pytest, as in `make test ARGS="tests/security -k redis"`.
ARGS ?=
PYTEST := $(TEST_PYTHON) -m pytest
PROTO := tachikoma/exec/v1/remote_execution.proto
# Where `make proto` writes.
OUT ?= shared
SPAWNER := $(wildcard worker/spawner/*.[ch])

# Tests start hundreds of processes and import hundreds of test files: each would compile this tree anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo dev quick test test-long check format lint types snippets layers api unit coverage measure \
    lock docs site test-cgroup2 test-container test-engine test-images test-packages sanitize fuzz soak soak-sentinel \
    bench bench-startup bench-spawn bench-admission bench-trust bench-events bench-output bench-batch bench-terminals \
    wheel sdist sbom deb release-check proto clean

help: ## List the targets.
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p; s/^## \(.*\)/\n\1/p' $(MAKEFILE_LIST) | \
	    awk -F '\t' 'NF == 2 {printf "  %-16s %s\n", $$1, $$2; next} {print}'

## Every day

demo: $(VENV)/installed ## Run the whole system on this machine and show it at work.
	$(BIN)/tachikoma demo

dev: $(VENV)/dev ## Make .venv: this tree, editable, and every tool, from the lock.

quick: dev ## Lint, types, layers, and the unit tests that are quick: before each commit.
	@TACHIKOMA_TEST_EXAMPLES=10 $(MAKE) --no-print-directory --output-sync=target -j2 unit types layers lint \
	    ARGS='-m "not slow" $(ARGS)'

test: dev ## Run all tests but the long ones on the working tree; ARGS goes to pytest.
	$(PYTEST) -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder -m "not long" $(ARGS)

test-long: dev ## Run the tests that mostly wait or repeat, all of tests/faults among them.
	$(PYTEST) -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder -m long $(ARGS)

check: lint types snippets layers api ## Check format, lint, types, snippets, layers, images, API and generated files.

format: dev ## Format the code, and mend what the linter can mend.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

## Parts of these

lint: dev ## Check format and lint.
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .

types: dev ## Check types.
	$(BIN)/mypy
	$(BIN)/mypy tests/types/client.py

snippets: dev ## Check the types of each piece of Python in the documents.
	$(BIN)/python tools/check_snippets.py

layers: dev ## Check which package may import which.
	$(BIN)/lint-imports

api: dev ## Check the API definition, what is generated from it, and the Dockerfiles.
	$(BIN)/buf lint
	$(BIN)/hadolint docker/orchestrator.Dockerfile docker/worker.Dockerfile
	@work=$$(mktemp -d) && trap 'rm -rf "$$work"' EXIT && \
	    $(MAKE) --no-print-directory proto OUT="$$work" && \
	    diff -r --exclude=__pycache__ --exclude=__init__.py "$$work/tachikoma/exec/v1" shared/tachikoma/exec/v1

unit: dev ## Run the unit tests.
	$(PYTEST) -q -n 2 tests/unit $(ARGS)

## More tests

test-cgroup2: dev ## Test confinement in a virtual machine with only cgroup v2; tests/vm/run names its packages.
	tests/vm/run $(PYTEST) --color no -p no:cacheprovider -m "not any_kernel" tests/confinement

test-container: dev ## Test confinement in real containers; needs root and a docker engine, which it starts.
	tests/container/run $(PYTEST) --color no -p no:cacheprovider tests/confinement

test-engine: dev ## Test the border of an agent's engine; ENGINE is the command line of another one.
	TACHIKOMA_TEST_ENGINE="$(ENGINE)" $(PYTEST) -q tests/conformance $(ARGS)

test-images: dev ## Build the images and use docker/compose.yaml; tests/container/images names its packages.
	tests/container/images

test-packages: ## Use the Debian packages on a fresh Debian; tests/container/packages names its packages.
	tests/container/packages

sanitize: dev ## Test confinement with a spawner that is built with sanitizers and without a warning.
	mkdir -p build
	$(CC) -std=c11 -g -O1 -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Werror \
	    -fsanitize=address,undefined -fno-sanitize-recover=all -o build/sanitized-spawner worker/spawner/*.c
	TACHIKOMA_TEST_SPAWNER=$(abspath build/sanitized-spawner) $(PYTEST) tests/confinement

# For each kind of input of tests/fuzz.
FUZZ_SECONDS ?= 3
fuzz: dev ## Fuzz the spawner's parser under sanitizers, then files and messages, FUZZ_SECONDS for each kind.
	worker/spawner/fuzz/run
	TACHIKOMA_TEST_FUZZ_SECONDS=$(FUZZ_SECONDS) $(PYTEST) -q tests/fuzz $(ARGS)

EXECUTIONS ?= 10000
soak: dev ## Run EXECUTIONS executions while random faults happen; SEED repeats the faults of a run.
	TACHIKOMA_TEST_EXECUTIONS=$(EXECUTIONS) TACHIKOMA_TEST_SEED=$(SEED) TACHIKOMA_TEST_LIVES=1 \
	    $(PYTEST) tests/faults/test_random.py $(ARGS)

FAILOVERS ?= 10
soak-sentinel: dev ## Let each fault of a primary behind Sentinel happen FAILOVERS times, and print the times.
	TACHIKOMA_TEST_FAILOVERS=$(FAILOVERS) $(PYTEST) tests/faults/test_sentinel.py $(ARGS)

coverage: dev ## Run all tests and print the coverage of each room, branches included; ARGS goes to pytest.
	rm -rf build/coverage && mkdir -p build/coverage
	-COVERAGE_FILE=$(abspath build/coverage/data) $(BIN)/coverage run -m pytest \
	    -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)
	$(BIN)/coverage combine --quiet --data-file build/coverage/data build/coverage
	$(BIN)/coverage json --quiet --data-file build/coverage/data -o build/coverage/report.json
	$(BIN)/python tools/coverage_table.py build/coverage/report.json

measure: dev ## Print sizes of modules and functions, entries per level, and what is untyped.
	$(BIN)/python tools/measure.py

## Benchmarks (they report times; no test asserts them)

bench: $(VENV)/installed ## One command here and by asyncssh, OpenSSH and plain Celery; ARGS as `--beside NAME=PYTHON`.
	$(BIN)/python benchmarks/compare $(ARGS)

bench-terminals: $(VENV)/installed ## Terminals here and by OpenSSH and asyncssh: keys, output, input, Ctrl-C, memory.
	$(BIN)/python benchmarks/terminals $(ARGS)

bench-startup: $(VENV)/installed ## Whole programs from start to exit, beside a bare Python and a cold ssh.
	$(BIN)/python benchmarks/compare/startup.py $(ARGS)

bench-spawn: $(VENV)/installed ## A confined start beside subprocess.run; needs root.
	$(BIN)/python benchmarks/spawn.py

bench-admission: $(VENV)/installed ## A policy decision and an admission beside a round trip to Redis.
	$(BIN)/python benchmarks/admission.py

bench-batch: $(VENV)/installed ## A batch beside single requests, and 10,000 stand-ins of agents.
	$(BIN)/python benchmarks/batch.py $(ARGS)

bench-trust: $(VENV)/installed ## Signing, verifying and handshakes beside an Execute.
	$(BIN)/python benchmarks/trust.py

bench-events: $(VENV)/installed ## What the events for Flower add to an execution.
	$(BIN)/python benchmarks/events.py

BYTES ?= 10000000000
bench-output: $(VENV)/installed ## Memory of each process while a command writes BYTES of output.
	$(BIN)/python benchmarks/output.py --bytes $(BYTES)

## Generated files

proto: ## Generate the gRPC code from the API definition.
	mkdir -p $(OUT)/tachikoma/exec/v1
	cd shared && PATH="$(abspath $(BIN)):$$PATH" python -m grpc_tools.protoc -I . --python_out=$(abspath $(OUT)) \
	    --grpc_python_out=$(abspath $(OUT)) --mypy_out=quiet:$(abspath $(OUT)) \
	    --mypy_grpc_out=quiet:$(abspath $(OUT)) $(PROTO)
	@[ "$(abspath $(OUT))" = "$(abspath shared)" ] || cp shared/$(PROTO) $(OUT)/$(PROTO)

docs: dev ## Write the parts of the documentation that are generated from code.
	$(BIN)/python docs/tables.py
	$(BIN)/python docs/settings_page.py
	$(BIN)/python docs/json_page.py
	$(BIN)/python docs/cli_page.py
	$(BIN)/python docs/grpc_page.py
	$(BIN)/python docs/python_page.py

site: dev ## Build the documentation as a web site into build/site; a warning is an error.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

LOCK := UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
    --generate-hashes --no-annotate $(if $(UPGRADE),--upgrade)
lock: dev ## Write requirements/*.txt anew from setup.cfg; with UPGRADE=1, newer releases too.
	$(LOCK) --extra dev setup.cfg requirements/build.in -o requirements/dev.txt
	$(LOCK) -c requirements/dev.txt requirements/build.in -o requirements/build.txt
	$(LOCK) -c requirements/dev.txt --extra test setup.cfg -o requirements/test.txt
	$(LOCK) -c requirements/dev.txt --extra docs setup.cfg -o requirements/docs.txt
	$(LOCK) -c requirements/dev.txt --extra all setup.cfg -o requirements/all.txt
	$(LOCK) -c requirements/dev.txt --extra orchestrator --extra flower --extra otel setup.cfg \
	    -o requirements/orchestrator.txt
	$(LOCK) -c requirements/dev.txt --extra worker --extra otel setup.cfg -o requirements/worker.txt

## Releases (docs/releasing.md)

# What an earlier build left would put deleted modules back into the wheel.
wheel: dev ## Build the wheel into dist/.
	rm -rf build/lib build/bdist.* dist/*.whl
	$(BIN)/python -m build --wheel --no-isolation

sdist: dev ## Build the source distribution into dist/.
	rm -f dist/*.tar.gz
	$(BIN)/python -m build --sdist --no-isolation

sbom: dev ## Write dist/sbom-*.cdx.json: what each lock installs, in CycloneDX.
	mkdir -p dist
	for lock in all orchestrator worker; do \
	    $(BIN)/cyclonedx-py requirements --of JSON --output-reproducible -o dist/sbom-$$lock.cdx.json \
	        requirements/$$lock.txt || exit 1; \
	done

deb: ## Build the Debian packages into dist/, from the wheel there and the lock, for this machine's Debian.
	packaging/debian/build

release-check: dev ## Check that a tagged tree can be released, and build all of it.
	$(BIN)/python tools/release_check.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tachikoma needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

BUILT_FROM := setup.cfg setup.py pyproject.toml $(SPAWNER)

$(VENV)/installed: $(VENV)/bin/python requirements/all.txt requirements/build.txt $(BUILT_FROM)
	$(PIP) install --require-hashes -r requirements/all.txt -r requirements/build.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/dev: $(VENV)/bin/python requirements/dev.txt $(BUILT_FROM)
	$(PIP) install --require-hashes -r requirements/dev.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@ $(VENV)/installed

clean: ## Remove environments, builds and caches.
	rm -rf $(VENV) .tox .vm build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
