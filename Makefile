# `make demo` and `make test` work on a fresh clone: they create .venv, install, and run.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE_TOOLS := $(VENV)/.native-tools

.PHONY: help install demo test test-slow test-gpu test-native test-sanitizers test-arm fuzz test-environment test-robot \
	test-precisions test-tamper test-endurance test-large test-consumers test-lerobot wheels test-wheels docs test-site \
	metaworld results peers lint lint-native tidy-native tidy-tests native-tests typecheck format clean

help:            ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

install: $(STAMP) ## create the environment and install everything

# What the native engine is built and checked with, beside a compiler: seconds, while all of the environment takes minutes.
$(NATIVE_TOOLS): constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt cmake clang-format clang-tidy
	touch $@

# torch first and by its exact version: whatever depends on torch is then content with it
$(STAMP): pyproject.toml constraints.txt | $(NATIVE_TOOLS)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

demo: $(STAMP)   ## export a real checkpoint, verify it, run 200 steps, print a table
	$(BIN)/python examples/demo.py

# Two processes, a core each: threads of PyTorch that wait for one another would spin. A process that a test has ended is
# not replaced: the run ends there and says which test it was.
PYTEST_2 := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --max-worker-restart 0
OTHERS := not consumers and not environment and not large and not lerobot and not precisions and not wheels
HOURS := -o faulthandler_timeout=7200

test: $(STAMP)   ## all tests that belong to every change
	$(PYTEST_2) -m 'not slow and $(OTHERS)'

test-slow: $(STAMP) ## what takes long and rarely breaks by a change elsewhere: before a release
	$(PYTEST_2) $(HOURS) -m 'slow and $(OTHERS)'

# what needs another target beside these is left out
GPU_TESTS := $(addprefix tests/contract/test_,golden.py conformance.py step_api.py)

test-gpu: $(STAMP) ## golden traces and conformance of the target tvm on the GPU here; needs a driver and nvcc
	LRAM_TARGETS="pytorch onnxruntime tvm" \
		LRAM_TVM_PLATFORM=cuda-sm$$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .) \
		$(BIN)/python -m pytest $(GPU_TESTS) -k "tvm and not openvino and not native and not tensorrt"

# The native engine by itself. Its tests need a C++ compiler; cmake, ctest and the recorded steps come from the environment.
NATIVE := kernels/native
NATIVE_JOBS ?= 2
REPLAY := build/native-replay
CMAKE := $(BIN)/cmake
CTEST := $(BIN)/ctest --output-on-failure --no-tests=error --parallel $(NATIVE_JOBS)
FUZZ_SECONDS ?= 600

$(REPLAY)/.written: $(STAMP) tests/native_replay.py $(wildcard exporters/native/*.py lram_export/targets/native/*.py lram_export/*.py)
	$(BIN)/python -m tests.native_replay $(REPLAY)
	touch $@

# $(call build-native,folder,options)
define build-native
	mkdir -p build
	$(CMAKE) -S $(NATIVE) -B build/$(1) -DLRAM_SHARED=OFF -DLRAM_WERROR=ON $(2) > build/$(1).log || (cat build/$(1).log; false)
	$(CMAKE) --build build/$(1) --parallel $(NATIVE_JOBS)
endef
NATIVE_TESTS := -DLRAM_TESTS=ON -DLRAM_REPLAY=$(abspath $(REPLAY))

# by itself, as it can be done before there are recorded steps
native-tests: $(NATIVE_TOOLS)
	$(call build-native,native,$(NATIVE_TESTS))

test-native: native-tests $(REPLAY)/.written ## the native engine's own tests, and recorded steps on every instruction set
	$(CTEST) --test-dir build/native

COMMA := ,
# The thread sanitizer of GCC 12 knows no kernel that places memory at random over more than 28 bits, and ends a child
# that starts threads after a fork, which ours may, unless told not to.
MEMORY_SANITIZERS := address,undefined,float-cast-overflow

test-sanitizers: $(REPLAY)/.written ## the same tests with the address, undefined behaviour and thread sanitizers
	$(call build-native,native-address,$(NATIVE_TESTS) -DLRAM_SANITIZE=$(MEMORY_SANITIZERS))
	$(CTEST) --test-dir build/native-address
	$(call build-native,native-thread,$(NATIVE_TESTS) -DLRAM_SANITIZE=thread)
	TSAN_OPTIONS=die_after_fork=0 setarch -R $(CTEST) --test-dir build/native-thread

# Every warning is an error: a link that leads nowhere, a page that no list names, a docstring that cannot be read.
docs: $(STAMP)   ## the documentation as a site, in build/docs/index.html; runs what changed of its gallery
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m sphinx -b html --fail-on-warning --keep-going -q docs build/docs

test-site: docs  ## the site's links, and its pages in Chromium
	$(BIN)/python -m tests.site build/docs

ARM_PACKAGES = $(if $(shell command -v aarch64-linux-gnu-g++),,g++-aarch64-linux-gnu) \
	$(if $(shell command -v qemu-aarch64-static),,qemu-user-static)

test-arm: $(REPLAY)/.written ## the same tests on emulated ARM processors; tvm bundles on an emulated ARM robot
	test -z "$(strip $(ARM_PACKAGES))" || apt-get install -qq -y $(ARM_PACKAGES) > /dev/null \
		|| (echo "test-arm: missing: apt-get install $(strip $(ARM_PACKAGES))"; false)
	$(call build-native,native-arm,$(NATIVE_TESTS) \
		-DCMAKE_TOOLCHAIN_FILE=$(abspath $(NATIVE)/cmake/aarch64-linux-gnu.cmake))
	LRAM_EMULATED=1 QEMU_CPU=max LRAM_EXPECT_ISA=neondot $(CTEST) --test-dir build/native-arm
	LRAM_EMULATED=1 QEMU_CPU=cortex-a72 LRAM_EXPECT_ISA=neon $(CTEST) --test-dir build/native-arm
	$(BIN)/python -m tests.emulated_arm build/arm

# Inputs that were found to matter stay in build/fuzz for the next run; a finding is a file of its own there.
fuzz: $(STAMP)   ## fuzzers of the artifact reader and of saved states, FUZZ_SECONDS each (600); needs clang++
	@command -v clang++ > /dev/null || (echo "fuzz: missing: apt-get install clang"; false)
	$(call build-native,native-fuzz,-DLRAM_FUZZ=ON -DCMAKE_CXX_COMPILER=clang++ \
		-DLRAM_SANITIZE=fuzzer-no-link$(COMMA)$(MEMORY_SANITIZERS))
	build/native-fuzz/fuzz/write_seeds build/fuzz
	build/native-fuzz/fuzz/fuzz_artifact -max_total_time=$(FUZZ_SECONDS) -max_len=262144 -timeout=60 \
		-print_final_stats=1 -artifact_prefix=build/fuzz/artifact- build/fuzz/artifact
	build/native-fuzz/fuzz/fuzz_state -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=60 \
		-print_final_stats=1 -artifact_prefix=build/fuzz/state- build/fuzz/state

test-environment: $(STAMP) ## what a robot installs, built from nothing: without torch, without Python (needs a package index)
	$(BIN)/python -m pytest $(HOURS) -m environment

test-robot: $(STAMP) ## what of that belongs to every change
	$(BIN)/python -m pytest $(HOURS) -m 'environment and not slow'

test-precisions: $(STAMP) ## every target at every precision, 1,000 steps; 10,000 at fp32 (minutes)
	$(BIN)/python -m pytest $(HOURS) -m precisions

test-tamper: $(STAMP) ## bundles altered with valid hashes are noticed: thousands of mutants (about half an hour)
	$(BIN)/python -m tests.tamper.campaign build/tamper

ENDURANCE_SECONDS ?= 3600

test-endurance: $(STAMP) ## the control loop and every fault at 200 Hz, ENDURANCE_SECONDS long (3600)
	PYTHONPATH=examples $(BIN)/python -m tests.loop.endurance build/endurance --seconds $(ENDURANCE_SECONDS)

test-large: $(STAMP) ## the 206m preset: time and memory of the export (minutes, 5 GB of disk)
	$(BIN)/python -m pytest $(HOURS) -m large -s

test-consumers: $(STAMP) ## what `convert --to` writes, in ONNX Runtime 1.16 to today, JavaScript, LEAPP, efferent, physicalai, Triton (needs package indexes)
	$(BIN)/python -m pytest $(HOURS) -m consumers -s

test-lerobot: $(STAMP) ## bundles in LeRobot: lerobot-eval on Meta-World, what lerobot-rollout calls (5 to 20 minutes and 6 GB to install)
	$(BIN)/python -m pytest $(HOURS) -m lerobot -s

WHEEL_TOOLS := build/wheels/tools

$(WHEEL_TOOLS)/.installed: wheels/tools.txt
	$(PYTHON) -m venv --clear $(WHEEL_TOOLS)
	$(WHEEL_TOOLS)/bin/python -m pip install --quiet --requirement wheels/tools.txt
	touch $@

wheels: $(WHEEL_TOOLS)/.installed ## release wheels with the native engine, and its library, for x86-64 and ARM, into dist/
	CMAKE_BUILD_PARALLEL_LEVEL=$(NATIVE_JOBS) $(WHEEL_TOOLS)/bin/python -m wheels.build dist

test-wheels: $(STAMP) ## what is in dist/, installed in every Python here and on emulated ARM robots
	test -z "$(strip $(ARM_PACKAGES))" || apt-get install -qq -y $(ARM_PACKAGES) > /dev/null \
		|| (echo "test-wheels: missing: apt-get install $(strip $(ARM_PACKAGES))"; false)
	$(BIN)/python -m pytest $(HOURS) -m wheels

METAWORLD := build/metaworld
POLICIES := xlstm mamba decision_transformer

metaworld: $(STAMP) ## train the example policies anew: episodes, training, measurements, model card (about three hours)
	$(BIN)/python examples/metaworld/collect.py $(METAWORLD)/episodes
	for policy in $(POLICIES); do \
		$(BIN)/python examples/metaworld/train.py $(METAWORLD)/episodes -o $(METAWORLD)/$$policy --backbone $$policy || exit; \
	done
	$(BIN)/python examples/metaworld/measure.py $(METAWORLD) -o $(METAWORLD)/measured
	$(BIN)/python examples/metaworld/card.py $(METAWORLD) $(METAWORLD)

results: $(STAMP) ## measure the tables of docs/results.md anew (hours, 10 GB of disk)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt transformers
	$(BIN)/python benchmarks/results.py

# Other runtimes are in an environment of their own, behind which this project's is seen: no second torch, and nothing of
# theirs in ours. No dependencies: the files name what is really needed. One that does not install is left out.
PEERS := build/peers/venv
PEER_PACKAGES := $(wildcard benchmarks/peers/*.txt)
PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

$(PEERS)/.installed: $(STAMP) $(PEER_PACKAGES)
	$(BIN)/python -m venv --clear $(PEERS)
	echo "import site; site.addsitedir('$$($(BIN)/python $(PURELIB))')" > "$$($(PEERS)/bin/python $(PURELIB))/project.pth"
	for file in $(PEER_PACKAGES); do \
		$(PEERS)/bin/python -m pip install --quiet --no-deps --only-binary :all: --requirement $$file 2>> build/peers/pip.log \
			|| echo "peers: $$file does not install here, see build/peers/pip.log"; \
	done
	touch $@

peers: $(PEERS)/.installed ## the same steps on other runtimes, beside ours, into docs/results.md (10 GB of disk)
	$(PEERS)/bin/python benchmarks/peers.py --page

lint: $(STAMP)   ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) typecheck

CPP = $(shell find kernels examples wheels ros -name '*.h' -o -name '*.c' -o -name '*.cpp' -o -name '*.hpp')
TIDY = $(filter-out %/binding.cpp %/isa_neon.cpp %/isa_neondot.cpp $(NATIVE)/fuzz/%,$(filter $(NATIVE)/%.cpp,$(CPP)))

lint-native: $(NATIVE_TOOLS) ## clang-format
	$(BIN)/clang-format --dry-run --Werror $(CPP)

define tidy
	mkdir -p build
	$(CMAKE) -S $(NATIVE) -B build/lint-native -DLRAM_TESTS=ON > build/lint-native.log || (cat build/lint-native.log; false)
	$(BIN)/python -m tests.native_tidy build/lint-native --jobs $(NATIVE_JOBS) $(1)
endef

tidy-native: $(NATIVE_TOOLS) ## clang-tidy, on the engine and its loop
	$(call tidy,$(filter-out $(NATIVE)/tests/%,$(TIDY)))

tidy-tests: $(NATIVE_TOOLS) ## clang-tidy, on the engine's tests
	$(call tidy,$(filter $(NATIVE)/tests/%,$(TIDY)))

# mypy needs the import package as it is installed: exporters/ and runtimes/ inside lram_export/
typecheck: $(STAMP) ## mypy on the package as installed, and on what builds its wheels
	rm -rf build/typecheck
	$(BIN)/python -m pip install --quiet --no-deps --target build/typecheck --config-settings wheel.cmake=false .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p lram_export
	$(BIN)/mypy wheels
	cd ros/lram_ros && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p lram_ros

format: $(STAMP) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP)

clean:           ## remove the environment and everything built
	rm -rf $(VENV) build dist docs/gallery .pytest_cache .mypy_cache .ruff_cache .hypothesis
