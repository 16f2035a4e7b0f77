/* Launching a kernel so that it may start before the one ahead of it is done (programmatic
 * dependent launch). Such a kernel must call launch_wait() (ptx.cuh) before it touches what earlier
 * kernels wrote or read; everything ahead is complete then. launch_next() lets the next kernel
 * start: early is well, since that one waits too; but where it asks for much memory meanwhile, once
 * this kernel has asked for its own. */
#pragma once

#include <cuda_runtime.h>

template <class... Params, class... Args>
static inline cudaError_t launch_early(void (*kernel)(Params...), dim3 grid, dim3 block,
                                       size_t shared_bytes, cudaStream_t stream, Args &&...args)
{
    cudaLaunchAttribute attr = {};
    cudaLaunchConfig_t config = {};

    attr.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attr.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attr;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, Params(args)...);
}
