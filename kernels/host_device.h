/* Functions that host and GPU share, so that both compute the same. */
#pragma once

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ static inline
#else
#define HOST_DEVICE static inline
#endif
