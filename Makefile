# mlad: see `make help`. Objects of a variant live in build/, build/asan/, build/tsan/.

ifeq ($(origin CC),default)
CC      := gcc
endif
BUILD   ?= build
VERSION := $(shell cat VERSION)

PKGS     := libuv libmicrohttpd gnutls libcjson libpcre2-8
CPPFLAGS += -I. -D_GNU_SOURCE -DMLAD_VERSION='"$(VERSION)"' $(shell pkg-config --cflags $(PKGS) libcurl 2>/dev/null)
WARN     := -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wstrict-prototypes -Werror
CFLAGS   ?= -O2 -g
CFLAGS   += -std=gnu11 $(WARN) -fno-math-errno -pthread -ffile-prefix-map=$(CURDIR)=.
LDLIBS   += $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lm
LDFLAGS  += -pthread

# The CPU backend's loops are written for the vectoriser.
CPU_FLAGS := -O3

ifdef SANITIZE
CFLAGS  += -fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer
LDFLAGS += -fsanitize=$(SANITIZE)
endif

# The CUDA backend and libmla are built where nvcc is (CUDA=0: not), for Hopper alone.
NVCC    ?= $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
CUDA    ?= $(if $(and $(NVCC),$(if $(SANITIZE),,1)),1,0)
NVFLAGS := -gencode=arch=compute_90a,code=sm_90a -std=c++17 -O3 -lineinfo -I. -D_GNU_SOURCE \
	-Xcompiler=-Wall,-Wextra,-Werror,-fPIC,-pthread --expt-relaxed-constexpr -diag-suppress 177

DIRS    := base config kernels kernels/cpu model server
SOURCES := $(foreach d,$(DIRS),$(wildcard $(d)/*.c))
OBJECTS := $(SOURCES:%.c=$(BUILD)/obj/%.o)
ifeq ($(CUDA),1)
CU_OBJECTS  := $(patsubst %.cu,$(BUILD)/obj/%.cu.o,$(wildcard kernels/cuda/*.cu))
MLA_OBJECTS := $(filter $(BUILD)/obj/kernels/cuda/mla_% $(BUILD)/obj/kernels/cuda/gemm%,$(CU_OBJECTS))
OBJECTS     += $(CU_OBJECTS)
CPPFLAGS    += -DMLAD_CUDA
CUDA_LIBS   := -L$(dir $(NVCC))../lib64 -lcudart_static -ldl -lrt -lstdc++
LDLIBS      += $(CUDA_LIBS)
GPU_TESTS   := $(patsubst tests/gpu/%.cu,$(BUILD)/gpu/%,$(wildcard tests/gpu/*.cu)) \
	$(BUILD)/gpu/test_model
endif
LIBRARY := $(filter-out $(BUILD)/obj/server/main.o,$(OBJECTS))
TESTS   := $(patsubst tests/unit/%.c,$(BUILD)/tests/%,$(wildcard tests/unit/test_*.c))
HELPERS := $(patsubst tests/tokenizer/%.c,$(BUILD)/tests/%,$(wildcard tests/tokenizer/*.c)) \
	$(patsubst tests/grammar/%.c,$(BUILD)/tests/%,$(wildcard tests/grammar/*.c)) \
	$(patsubst tests/template/%.c,$(BUILD)/tests/%,$(wildcard tests/template/*.c))

.PHONY: all libmla run test test-gpu bench-gpu unit fuzz asan tsan tidy format dist cuda-toolkit clean help
.SECONDARY:

all: $(BUILD)/mlad  ## build build/mlad

$(BUILD)/mlad: $(OBJECTS)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/obj/kernels/cpu/%.o: CFLAGS += $(CPU_FLAGS)
$(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/obj/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVFLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<

# libmla by itself, and the programs that test and time kernels on a GPU machine. None needs more
# than the CUDA runtime, which is linked in.
ifeq ($(CUDA),1)
$(BUILD)/libmla.a: $(MLA_OBJECTS)
	@rm -f $@
	ar rcs $@ $^
$(BUILD)/libmla.so: $(MLA_OBJECTS) kernels/libmla.map
	$(NVCC) $(NVFLAGS) -shared -Xlinker=--version-script=kernels/libmla.map \
	-Xcompiler=-static-libstdc++,-static-libgcc -o $@ $(MLA_OBJECTS)
libmla: $(BUILD)/libmla.a $(BUILD)/libmla.so  ## build libmla.a and libmla.so (needs nvcc)
else
libmla:
	@echo 'libmla needs nvcc (CUDA=1 NVCC=/path/to/nvcc)' >&2; exit 1
endif

GPU_LIBRARY = $(filter $(BUILD)/obj/kernels/% $(BUILD)/obj/base/%,$(filter-out %/json.o %/log.o,$(OBJECTS)))
$(BUILD)/gpu/%: tests/gpu/%.cu $(GPU_LIBRARY)
	@mkdir -p $(@D)
	$(NVCC) $(NVFLAGS) -MMD -MP -MF $@.d -o $@ $< $(GPU_LIBRARY) -lpthread

# The whole model on the GPU. Of the libraries it needs cJSON and PCRE2 alone.
GPU_MODEL = $(filter $(BUILD)/obj/base/% $(BUILD)/obj/kernels/%,$(OBJECTS)) $(patsubst \
	%,$(BUILD)/obj/model/%.o,config config_indexer config_quant config_rope dequant family folder keys \
	model pattern rope safetensors weight_list weight_names weight_source weights)
$(BUILD)/gpu/test_model: tests/gpu/test_model.c $(GPU_MODEL)
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -Wno-conversion $(LDFLAGS) -MMD -MP -MF $@.d -o $@ $< $(GPU_MODEL) \
	$(shell pkg-config --libs libcjson libpcre2-8 2>/dev/null) $(CUDA_LIBS) -lm

test-gpu: $(filter $(BUILD)/gpu/test_%,$(GPU_TESTS)) | $(BUILD)/libmla.so  ## build and run the GPU tests (needs a GPU)
	@set -e; for t in $^; do echo $$t; $$t; done
	@if python3 -c 'import torch'; then python3 tests/gpu/check_mla_python.py $(BUILD)/libmla.so; \
	else echo 'no torch: kernels/python/mla.py was not checked'; fi

bench-gpu: $(filter $(BUILD)/gpu/bench_%,$(GPU_TESTS))  ## build and run the kernels' benchmarks (needs a GPU)
	@set -e; for t in $^; do echo $$t; $$t; done
	@echo "$(BUILD)/gpu/bench_mla_decode fp8"; $(BUILD)/gpu/bench_mla_decode fp8

# What page.c puts into the binary, which no compiler sees.
$(BUILD)/obj/server/page.o: server/page/chat.html server/page/openapi.json

# One Check program a file, and the programs that Python tests drive; all link the whole of mlad but
# its main().
CHECK_CFLAGS = $(shell pkg-config --cflags check 2>/dev/null)
CHECK_LIBS   = $(shell pkg-config --libs check 2>/dev/null)
LINK_TEST    = $(CC) $(CPPFLAGS) $(CFLAGS) -Wno-conversion $(CHECK_CFLAGS) $(LDFLAGS) \
	-MMD -MP -o $@ $< $(LIBRARY) $(CHECK_LIBS) $(LDLIBS)
$(BUILD)/tests/%: tests/unit/%.c $(LIBRARY)
	@mkdir -p $(@D)
	$(LINK_TEST)
$(BUILD)/tests/%: tests/tokenizer/%.c $(LIBRARY)
	@mkdir -p $(@D)
	$(LINK_TEST)
$(BUILD)/tests/%: tests/grammar/%.c $(LIBRARY)
	@mkdir -p $(@D)
	$(LINK_TEST)
$(BUILD)/tests/%: tests/template/%.c $(LIBRARY)
	@mkdir -p $(@D)
	$(LINK_TEST)

# The client that measures a running daemon: see tests/bench/load.c.
$(BUILD)/load: tests/bench/load.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -Wno-conversion $(LDFLAGS) -o $@ $<

unit: $(TESTS)  ## build and run the unit tests
	@set -e; for t in $(TESTS); do $$t; done

fuzz:  ## run every fuzzer for FUZZ_SECONDS (30)
	@scripts/fuzz.sh

$(BUILD)/bin/%: tests/fuzz/fuzz_%.c tests/fuzz/fuzz.h $(LIBRARY)
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -fsanitize=fuzzer $(LDFLAGS) -o $@ $< $(LIBRARY) $(LDLIBS)

run:  ## install what is missing, build, serve the demo model
	@scripts/run.sh

test:  ## install what is missing, build, run all tests
	@scripts/test.sh

asan:  ## all tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@scripts/test.sh asan

tsan:  ## all tests under ThreadSanitizer
	@scripts/test.sh tsan

# Layout is that of clang-format 14, which scripts/setup.sh puts into build/venv.
TIDY = build/venv/bin/python tests/tidy/tidy.py --clang-format build/venv/bin/clang-format
tidy:  ## check layout, the direction of includes, sizes, shell scripts
	@scripts/setup.sh tidy
	@$(TIDY)

format:  ## lay out the C files as .clang-format says
	@scripts/setup.sh tidy
	@$(TIDY) --write

# The same objects linked to find their libraries in lib/ beside bin/: by DT_RPATH, since unlike
# DT_RUNPATH it also holds for what the libraries need themselves.
$(BUILD)/dist/mlad: $(OBJECTS)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -Wl,--disable-new-dtags,-rpath,'$$ORIGIN/../lib' -o $@ $^ $(LDLIBS)

dist:  ## a tarball that runs on any Linux of a recent glibc
	@scripts/dist.sh

cuda-toolkit:
	@echo '$(if $(filter 1,$(CUDA)),$(abspath $(dir $(NVCC))..))'

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

clean:  ## remove build/
	rm -rf build

-include $(OBJECTS:.o=.d) $(TESTS:=.d) $(HELPERS:=.d) $(GPU_TESTS:=.d)
