/* Launching a kernel so that it may start before the one ahead of it is done (programmatic
 * dependent launch). Such a kernel must call launch_wait() (ptx.cuh) before it touches what earlier
 * kernels wrote or read; everything ahead is complete then. launch_next() lets the next kernel
 * start: early is well, since that one waits too; but where it asks for much memory meanwhile, once
 * this kernel has asked for its own. */
#pragma once

#include <cuda_runtime.h>

/* In clusters of `cluster` blocks. */
template <class... Params, class... Args>
static inline cudaError_t launch_clusters(void (*kernel)(Params...), int cluster, dim3 grid,
                                          dim3 block, size_t shared_bytes, cudaStream_t stream,
                                          Args &&...args)
{
    cudaLaunchAttribute attrs[2] = {};
    cudaLaunchConfig_t config = {};

    attrs[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attrs[0].val.programmaticStreamSerializationAllowed = 1;
    attrs[1].id = cudaLaunchAttributeClusterDimension;
    attrs[1].val.clusterDim.x = (unsigned)cluster;
    attrs[1].val.clusterDim.y = 1;
    attrs[1].val.clusterDim.z = 1;
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = attrs;
    config.numAttrs = cluster > 1 ? 2 : 1;
    return cudaLaunchKernelEx(&config, kernel, Params(args)...);
}

template <class... Params, class... Args>
static inline cudaError_t launch_early(void (*kernel)(Params...), dim3 grid, dim3 block,
                                       size_t shared_bytes, cudaStream_t stream, Args &&...args)
{
    return launch_clusters(kernel, 1, grid, block, shared_bytes, stream, args...);
}

/* Lets KERNEL have so much dynamic shared memory, once: further calls do nothing. */
template <auto KERNEL> static cudaError_t launch_room(int bytes)
{
    static int ready; /* set again by a racing thread: the same */

    if (ready)
        return cudaSuccess;
    cudaError_t e =
        cudaFuncSetAttribute(KERNEL, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    ready = e == cudaSuccess;
    return e;
}
