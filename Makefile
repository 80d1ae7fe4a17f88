# What people type. The build itself is CMake's; these only name its steps.
.DEFAULT_GOAL := help
.PHONY: help demo build test test-engines bench quality lint format bootstrap configure

python := build/venv/bin/python
build_dir := build/release
cpp_files = $(shell git ls-files '*.h' '*.cc' '*.cu' '*.cuh')

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: configure ## a language model answers, cold, from memory, and after the daemon was killed
	@echo "demo: building the daemon, the command line and the client library"
	@cmake --build $(build_dir) --target terraced terrace terrace_shared
	@echo "demo: running examples/demo.py"
	@$(python) examples/demo.py

build: configure ## release programs in build/release: terraced, terrace, terrace-bench
	@echo "build: everything, to $(build_dir)"
	@cmake --build $(build_dir)

test: build ## every test on the release build; ends with the totals
	@echo "test: C++ and Python tests on $(build_dir)"
	@scripts/run-tests $(build_dir) --python tests/python --python client/python/tests

test-engines: configure ## vLLM, LMCache, Redis clients and llama.cpp on terrace; figures in build/engines.json
	@scripts/bootstrap engines
	@echo "test-engines: building the daemon, the command line and the client library"
	@cmake --build $(build_dir) --target terraced terrace terrace_shared
	@echo "test-engines: each engine's own process against a daemon (minutes)"
	@rm -rf build/engines/results build/engines.json
	@status=0; TERRACE_BUILD_DIR=$(CURDIR)/$(build_dir) build/engines/venv/bin/python -m pytest tests/engines \
	  -v --durations=10 --junitxml=build/engines/results/engines.xml || status=$$?; \
	scripts/run-tests --total build/engines && exit $$status

bench: build ## every suite of terrace-bench, against its reference in the same run
	@echo "bench: terrace-bench all"
	@$(build_dir)/terrace-bench all

quality: configure ## size and loss of every codec on a language model, rivals beside ours; 20 minutes
	@echo "quality: building the libraries"
	@cmake --build $(build_dir) --target terrace_codec_shared terrace_shared
	@echo "quality: running tests/quality/quality.py"
	@$(python) tests/quality/quality.py

lint: configure ## formatting, clang-tidy and the tidy rules
	@echo "lint: clang-format"
	@clang-format --dry-run --Werror $(cpp_files)
	@echo "lint: tidy rules"
	@$(python) -m pytest -q tests/python/tidy_test.py
	@echo "lint: clang-tidy (slow: it parses every source file)"
	@cmake --build $(build_dir) --target terrace_wire
	@run-clang-tidy -quiet -p $(build_dir) '/(config|kernels|tiers|transport|daemon|client)/[^.]*\.cc$$'

format: bootstrap ## formats every C++ file in place
	@echo "format: clang-format -i on $(words $(cpp_files)) files"
	@clang-format -i $(cpp_files)

bootstrap:
	@scripts/bootstrap

# CMake configures again by itself when its files change.
configure: bootstrap
	@test -f $(build_dir)/build.ninja || \
	  { echo "configure: cmake --preset release"; cmake --preset release; }
