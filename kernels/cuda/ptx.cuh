/* The PTX that Hopper kernels are written in, one instruction a function: mbarriers, the bulk
 * tensor copy engine (TMA), warpgroup matrix products (wgmma), and the fences between them.
 * Addresses of shared memory are 32-bit (smem_u32). Source: PTX ISA 8.x / 9.0, sections 9.7.9 (data
 * movement), 9.7.13 (mbarrier) and 9.7.15 (wgmma). */
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <stdint.h>

__device__ __forceinline__ uint32_t smem_u32(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* ---- mbarrier ------------------------------------------------------------------------------- */

__device__ __forceinline__ void mbar_init(uint32_t bar, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals));
}

/* Makes initialised barriers visible to the copy engine and to the cluster. */
__device__ __forceinline__ void mbar_init_fence()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbar_arrive(uint32_t bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

/* One arrival, and `bytes` more that the copy engine will bring. */
__device__ __forceinline__ void mbar_arrive_expect(uint32_t bar, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
                 : "memory");
}

/* Whether it has; looks once. */
__device__ __forceinline__ bool mbar_test(uint32_t bar, uint32_t parity)
{
    uint32_t done;

    asm volatile("{\n.reg .pred p;\n"
                 "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(bar), "r"(parity)
                 : "memory");
    return done;
}

__device__ __forceinline__ bool mbar_try_wait(uint32_t bar, uint32_t parity)
{
    uint32_t done;

    asm volatile("{\n.reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(bar), "r"(parity)
                 : "memory");
    return done;
}

/* Waits for the phase of this parity to complete. */
__device__ __forceinline__ void mbar_wait(uint32_t bar, uint32_t parity)
{
    while (!mbar_try_wait(bar, parity)) {
    }
}

/* Counts the looks at a word of global memory that another block will write: one that never comes
 * (by an error, or the caller's, see mla.h) is a fault after some ten seconds, not a hang. */
__device__ __forceinline__ void look_again(uint32_t &looks)
{
    if (++looks == 1u << 24)
        __trap();
}

/* The same for a barrier at which other blocks of the cluster arrive after writing here. */
__device__ __forceinline__ void mbar_wait_cluster(uint32_t bar, uint32_t parity)
{
    asm volatile("{\n.reg .pred p;\nagain%=:\n"
                 "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra again%=;\n}" ::"r"(bar),
                 "r"(parity)
                 : "memory");
}

/* ---- bulk tensor copies (TMA) ---------------------------------------------------------------- */

enum : uint64_t { /* L2 eviction policies, as createpolicy makes them */
                  TMA_EVICT_NORMAL = 0x1000000000000000ull,
                  TMA_EVICT_FIRST = 0x12F0000000000000ull,
                  TMA_EVICT_LAST = 0x14F0000000000000ull,
};

__device__ __forceinline__ void tma_prefetch_map(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* The box of `map` at coordinates (x fastest) into shared memory; completes on `bar`. */
__device__ __forceinline__ void tma_load_2d(uint32_t dst, const CUtensorMap *map, uint32_t bar,
                                            int32_t x, int32_t y, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(x), "r"(y), "l"(policy)
                 : "memory");
}

__device__ __forceinline__ void tma_load_3d(uint32_t dst, const CUtensorMap *map, uint32_t bar,
                                            int32_t x, int32_t y, int32_t z, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z), "l"(policy)
                 : "memory");
}

/* The box of `map` to L2. */
__device__ __forceinline__ void tma_prefetch_2d(const CUtensorMap *map, int32_t x, int32_t y)
{
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(map), "r"(x),
                 "r"(y)
                 : "memory");
}

/* `bytes` (a multiple of 16) of contiguous memory; both addresses 16-byte aligned. */
__device__ __forceinline__ void bulk_load(uint32_t dst, const void *src, uint32_t bytes,
                                          uint32_t bar)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1], %2, [%3];" ::"r"(dst),
                 "l"(src), "r"(bytes), "r"(bar)
                 : "memory");
}

/* The same to L2. */
__device__ __forceinline__ void bulk_prefetch(const void *src, uint32_t bytes)
{
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(src), "r"(bytes) : "memory");
}

__device__ __forceinline__ void bulk_commit()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* Waits until at most N groups still read their shared memory. */
template <int N> __device__ __forceinline__ void bulk_wait_read()
{
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

template <int N> __device__ __forceinline__ void bulk_wait()
{
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}

/* ---- fences, barriers, launch order ---------------------------------------------------------- */

/* Ordinary writes to shared memory before it are seen by wgmma and the copy engine after it. */
__device__ __forceinline__ void fence_async()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* The same for memory of every kind. */
__device__ __forceinline__ void fence_async_all()
{
    asm volatile("fence.proxy.async;" ::: "memory");
}

/* Barrier `id` (1..15) among `threads` threads. */
__device__ __forceinline__ void named_sync(int id, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* The same; whether any of the threads came with `here`. */
__device__ __forceinline__ bool named_any(int id, int threads, bool here)
{
    uint32_t any;

    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\n"
                 "barrier.cta.red.or.pred p, %1, %2, p;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(any)
                 : "r"(id), "r"(threads), "r"((uint32_t)here)
                 : "memory");
    return any;
}

/* Arrives there without waiting. */
__device__ __forceinline__ void named_arrive(int id, int threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ float exp2_fast(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Four 8 x 8 matrices of bf16 from accumulator-shaped registers to shared memory; lane l gives the
 * address of row l % 8 of matrix l / 8. */
__device__ __forceinline__ void store_matrices(uint32_t addr, uint32_t a, uint32_t b, uint32_t c,
                                               uint32_t d)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(addr),
                 "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}

/* The reverse: four matrices to registers, as the left operand of a product has them. */
__device__ __forceinline__ void load_matrices(uint32_t addr, uint32_t (&a)[4])
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(addr)
                 : "memory");
}

/* Programmatic dependent launch: waits for the kernels before this one; lets the next one start. */
__device__ __forceinline__ void launch_wait()
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

__device__ __forceinline__ void launch_next()
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

template <int N> __device__ __forceinline__ void registers_raise()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N> __device__ __forceinline__ void registers_lower()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

/* ---- clusters ---------------------------------------------------------------------------------
 */

__device__ __forceinline__ uint32_t cluster_rank()
{
    uint32_t r;

    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}

__device__ __forceinline__ uint32_t cluster_id()
{
    uint32_t r;

    asm volatile("mov.u32 %0, %%clusterid.x;" : "=r"(r));
    return r;
}

__device__ __forceinline__ uint32_t cluster_size()
{
    uint32_t r;

    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(r));
    return r;
}

__device__ __forceinline__ void cluster_arrive()
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

/* Without making writes visible: after mbar_init_fence() that isn't needed. */
__device__ __forceinline__ void cluster_arrive_relaxed()
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait()
{
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* The address in block `rank` of the cluster of what this block has at `addr`. */
__device__ __forceinline__ uint32_t cluster_map(uint32_t addr, uint32_t rank)
{
    uint32_t r;

    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(addr), "r"(rank));
    return r;
}

__device__ __forceinline__ float4 cluster_load_v4(uint32_t addr)
{
    float4 v;

    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(addr)
                 : "memory");
    return v;
}

/* Words into a block of the cluster, counted by its barrier `bar`. */
__device__ __forceinline__ void send_4(uint32_t to, uint32_t bar, uint2 a, uint2 b)
{
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 "
                 "[%0], {%2, %3, %4, %5}, [%1];" ::"r"(to),
                 "r"(bar), "r"(a.x), "r"(a.y), "r"(b.x), "r"(b.y)
                 : "memory");
}

__device__ __forceinline__ void send_2(uint32_t to, uint32_t bar, uint2 a)
{
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 "
                 "[%0], {%2, %3}, [%1];" ::"r"(to),
                 "r"(bar), "r"(a.x), "r"(a.y)
                 : "memory");
}

__device__ __forceinline__ void send_1(uint32_t to, uint32_t bar, float a)
{
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %2, [%1];" ::"r"(to),
        "r"(bar), "r"(__float_as_uint(a))
        : "memory");
}

/* Relaxed, since a cluster-wide release costs thousands of cycles: for a barrier that says "read",
 * not "written". */
__device__ __forceinline__ void cluster_mbar_arrive(uint32_t bar, uint32_t rank)
{
    asm volatile(
        "mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [%0];" ::"r"(cluster_map(bar, rank))
        : "memory");
}

/* ---- warpgroup matrix products ----------------------------------------------------------------
 *
 * wgmma_ss / wgmma_rs: D (64, N) float += A (64, 16) bf16 * B (16, N) bf16, A from shared memory or
 * registers. Thread t of the warpgroup (warp w = t / 32, lane l) holds of D: d[4j + 2i + e] =
 * D[16w + l/4 + 8i][8j + 2(l%4) + e]; of A: a[0..3] = pairs at rows l/4, l/4+8, l/4, l/4+8 and
 * columns 2(l%4), 2(l%4), 2(l%4)+8, 2(l%4)+8. TA, TB: 1 when the tile in shared memory has M (N)
 * contiguous rather than K. */

enum { SWIZZLE_128 = 1, SWIZZLE_64 = 2, SWIZZLE_32 = 3 };

/* Descriptor of a tile in shared memory: byte address, leading and stride byte offsets. With
 * SWIZZLE_128 and K contiguous, `stride` is the distance of 8-row groups (1024 for rows of 128
 * bytes) and `leading` is not used; with M or N contiguous, `leading` is the distance between
 * 64-element column blocks and `stride` that between groups of 8 along K. */
__device__ __forceinline__ uint64_t wgmma_desc(uint32_t addr, uint32_t leading, uint32_t stride,
                                               uint64_t swizzle)
{
    return (uint64_t)((addr & 0x3ffff) >> 4) | (uint64_t)(leading >> 4) << 16 |
           (uint64_t)(stride >> 4) << 32 | swizzle << 62;
}

__device__ __forceinline__ void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int N> __device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* Keeps the compiler from moving uses of accumulators across asynchronous products. */
template <int N> __device__ __forceinline__ void wgmma_hold(float (&d)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}

template <int N> struct wgmma;
