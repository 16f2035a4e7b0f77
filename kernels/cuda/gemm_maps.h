/* Tensor maps of the matrices that the products read, and what the device has. Internal. */
#pragma once

#include <cuda.h>
#include <stdint.h>

/* A box of bf16: 64 along k (or n, where the weight is (k, n)), the rest as given; or of bytes, 128
 * along k. Coordinates are (inner, dims[0], dims[1], ...); strides in elements; all boxes are
 * swizzled by 128 bytes. Places outside the tensor read as 0. */
struct gemm_map {
    const void *data;
    int64_t inner;
    int32_t rank; /* further dimensions: 2 or 4 */
    int64_t dims[4];
    int64_t strides[4];
    int32_t box[4];
    int32_t bytes = 0; /* 1: elements are bytes (FP8) */
};

/* 0, or -1 where the driver refuses (alignment, ranges). */
int gemm_map_encode(CUtensorMap *out, const struct gemm_map *map);

/* Multiprocessors of the current device; 0 when it can't be read. */
int gemm_processors(void);
