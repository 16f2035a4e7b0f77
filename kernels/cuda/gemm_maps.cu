#include "kernels/cuda/gemm_maps.h"

#include <cuda_runtime.h>

enum { BOX_BYTES = 128, MAX_DEVICES = 64 };

/* The driver's function, found at run time: nothing links to libcuda, which machines without a GPU
 * lack. Two threads that race here find the same address. */
static decltype(&cuTensorMapEncodeTiled) encode_function()
{
    static decltype(&cuTensorMapEncodeTiled) encode;
    cudaDriverEntryPointQueryResult found;
    void *entry = nullptr;

    if (!encode && cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                                    cudaEnableDefault, &found) == cudaSuccess)
        encode = (decltype(encode))entry;
    return encode;
}

int gemm_map_encode(CUtensorMap *out, const struct gemm_map *map)
{
    cuuint64_t dims[5] = {(cuuint64_t)map->inner}, strides[4];
    cuuint32_t size = map->bytes ? 1 : 2, box[5] = {BOX_BYTES / size}, steps[5] = {1, 1, 1, 1, 1};
    auto encode = encode_function();

    if (!encode)
        return -1;
    for (int i = 0; i < map->rank; i++) {
        dims[i + 1] = (cuuint64_t)map->dims[i];
        strides[i] = (cuuint64_t)map->strides[i] * size;
        box[i + 1] = (cuuint32_t)map->box[i];
    }
    CUresult r =
        encode(out, map->bytes ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
               (cuuint32_t)map->rank + 1, (void *)map->data, dims, strides, box, steps,
               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return r == CUDA_SUCCESS ? 0 : -1;
}

int gemm_processors(void)
{
    static int processors[MAX_DEVICES];
    int device;

    if (cudaGetDevice(&device) != cudaSuccess || device >= MAX_DEVICES)
        return 0;
    if (!processors[device] &&
        cudaDeviceGetAttribute(&processors[device], cudaDevAttrMultiProcessorCount, device) !=
            cudaSuccess)
        return 0;
    return processors[device];
}
