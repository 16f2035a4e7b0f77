/* Which experts a row goes to, and with what weights (DeepSeek-V2 section 2.2, V3 section 2.1.2);
 * kernels/cpu/route.c is the definition. Among equal scores the lowest index wins. A warp a row. */
#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/route.cuh"

enum {
    ROWS = 4, /* of a block */
    MAX_CHOICES = 1024,
};

namespace
{

/* ids, weights (top_k) of a row. */
__device__ __forceinline__ void store_choice(int32_t *ids, float *weights, struct chosen mine,
                                             int top_k)
{
    if ((int)threadIdx.x < top_k) {
        ids[threadIdx.x] = mine.id;
        weights[threadIdx.x] = mine.weight;
    }
}

/* ids, weights (rows, top_k); rows from *n_rows on pad a graph. */
template <int EACH>
__global__ void __launch_bounds__(32 * ROWS)
    route_kernel(int32_t *ids, float *weights, const float *logits, const float *bias,
                 const int32_t *n_rows, int rows, router_config c)
{
    __shared__ float shared[ROWS][32 * EACH];
    const int row = blockIdx.x * ROWS + threadIdx.y;

    launch_next();
    launch_wait();
    if (row < rows)
        store_choice(ids + (int64_t)row * c.top_k, weights + (int64_t)row * c.top_k,
                     choose<EACH>(logits + (int64_t)row * c.experts, bias, shared[threadIdx.y],
                                  row < (n_rows ? *n_rows : rows), c),
                     c.top_k);
}

/* ---- few rows: norm, logits and choice in one launch -------------------------------------------
 *
 * A cluster of blocks, a warp for each expert in turn. Every block normalises all rows for itself;
 * logits go to the shared memory of the first block, which chooses. The first weights are fetched
 * before the kernel ahead is done. */

enum { GATE_BLOCKS = 8, GATE_WARPS = GATE_ROWS, GATE_THREADS = 32 * GATE_WARPS };

struct alignas(16) eight {
    bf16 v[8];
};

__device__ __forceinline__ void send_float(uint32_t to, uint32_t bar, float x)
{
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %2, [%1];" ::"r"(to),
        "r"(bar), "r"(__float_as_uint(x))
        : "memory");
}

/* CHUNKS * 128 >= d. */
template <int CHUNKS>
__device__ __forceinline__ void load_expert(float4 (&w)[CHUNKS], const float *router, int e, int d)
{
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        const int at = 128 * i + 4 * (int)threadIdx.x;
        w[i] = at < d ? *(const float4 *)(router + (int64_t)e * d + at) : float4{};
    }
}

/* rows of h in shared memory = rmsnorm of those of x; block r of the cluster writes row r out. */
template <int CHUNKS>
__device__ __forceinline__ void normalise(const gate_args &a, bf16 *h, int rank)
{
    enum { VECTORS = CHUNKS * 128 / (8 * GATE_THREADS) };
    __shared__ float partial[GATE_ROWS][GATE_WARPS];
    const int t = threadIdx.y * 32 + threadIdx.x;
    float4 norm[VECTORS][2];

#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int at = (i * GATE_THREADS + t) * 8;
        norm[i][0] = at < a.d ? *(const float4 *)(a.norm + at) : float4{};
        norm[i][1] = at < a.d ? *(const float4 *)(a.norm + at + 4) : float4{};
    }
    launch_wait();
    for (int r = 0; r < a.rows; r++) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            const int at = (i * GATE_THREADS + t) * 8;
            if (at >= a.d)
                continue;
            const eight in = *(const eight *)(a.x + (int64_t)r * a.d + at);
            *(eight *)(h + r * a.d + at) = in;
            for (int j = 0; j < 8; j++)
                sum += __bfloat162float(in.v[j]) * __bfloat162float(in.v[j]);
        }
        sum = warp_sum(sum);
        if (threadIdx.x == 0)
            partial[r][threadIdx.y] = sum;
    }
    __syncthreads();
    for (int r = 0; r < a.rows; r++) {
        float sum = 0;
        for (int i = 0; i < GATE_WARPS; i++)
            sum += partial[r][i];
        const float inverse = 1.0f / sqrtf(sum / (float)a.d + a.eps);
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            const int at = (i * GATE_THREADS + t) * 8;
            if (at >= a.d)
                continue;
            eight v = *(const eight *)(h + r * a.d + at);
            const float4 low = norm[i][0], high = norm[i][1];
            const float factors[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
            for (int j = 0; j < 8; j++)
                v.v[j] = __float2bfloat16_rn(factors[j] * (__bfloat162float(v.v[j]) * inverse));
            *(eight *)(h + r * a.d + at) = v;
            if (r == rank)
                *(eight *)(a.h + (int64_t)r * a.d + at) = v;
        }
    }
    __syncthreads();
}

template <int CHUNKS>
__device__ __forceinline__ float dot(const float4 (&w)[CHUNKS], const bf16 *h, int d)
{
    float sum = 0;

#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        const int at = 128 * i + 4 * (int)threadIdx.x;
        if (at >= d)
            continue;
        const uint2 raw = *(const uint2 *)(h + at);
        const float2 low = __bfloat1622float2(*(const __nv_bfloat162 *)&raw.x);
        const float2 high = __bfloat1622float2(*(const __nv_bfloat162 *)&raw.y);
        sum = fmaf(low.x, w[i].x, sum);
        sum = fmaf(low.y, w[i].y, sum);
        sum = fmaf(high.x, w[i].z, sum);
        sum = fmaf(high.y, w[i].w, sum);
    }
    return warp_sum(sum);
}

template <int CHUNKS, int EACH>
__global__ void __launch_bounds__(GATE_THREADS) gate_kernel(const __grid_constant__ gate_args a)
{
    extern __shared__ __align__(16) bf16 h[]; /* (rows, d) */
    __shared__ float logits[GATE_ROWS][32 * EACH], room[GATE_ROWS][32 * EACH];
    __shared__ uint64_t all_there;
    const int rank = (int)cluster_rank(), warp = threadIdx.y, experts = a.config.experts;
    const uint32_t bar = smem_u32(&all_there);
    float4 w[CHUNKS];

    launch_next();
    if (rank == 0 && warp == 0 && threadIdx.x == 0) {
        mbar_init(bar, 1);
        mbar_init_fence();
        mbar_arrive_expect(bar, (uint32_t)(a.rows * experts) * sizeof(float));
    }
    cluster_arrive();
    load_expert(w, a.router, min(rank * GATE_WARPS + warp, experts - 1), a.d);
    cluster_wait();
    normalise<CHUNKS>(a, h, rank);
    for (int e = rank * GATE_WARPS + warp; e < experts; e += GATE_BLOCKS * GATE_WARPS) {
        if (e >= GATE_BLOCKS * GATE_WARPS)
            load_expert(w, a.router, e, a.d);
        for (int r = 0; r < a.rows; r++) {
            const float logit = dot(w, h + r * a.d, a.d);
            if (threadIdx.x == 0)
                send_float(cluster_map(smem_u32(&logits[r][e]), 0), cluster_map(bar, 0), logit);
        }
    }
    if (rank != 0 || warp >= a.rows)
        return;
    mbar_wait_cluster(bar, 0);
    for (int e = threadIdx.x; e < experts; e += 32)
        a.logits[(int64_t)warp * experts + e] = logits[warp][e];
    store_choice(a.ids + (int64_t)warp * a.config.top_k, a.weights + (int64_t)warp * a.config.top_k,
                 choose<EACH>(logits[warp], a.bias, room[warp],
                              warp < (a.n_rows ? *a.n_rows : a.rows), a.config),
                 a.config.top_k);
}

template <int CHUNKS, int EACH> cudaError_t launch_gate(const gate_args &a, cudaStream_t stream)
{
    enum { MOST = GATE_ROWS * CHUNKS * 128 * 2 };
    static int ready; /* set again by a racing thread: the same */
    cudaLaunchAttribute attrs[2] = {};
    cudaLaunchConfig_t launch = {};

    if (!ready) {
        cudaError_t e = cudaFuncSetAttribute(gate_kernel<CHUNKS, EACH>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, MOST);
        if (e != cudaSuccess)
            return e;
        ready = 1;
    }
    attrs[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attrs[0].val.programmaticStreamSerializationAllowed = 1;
    attrs[1].id = cudaLaunchAttributeClusterDimension;
    attrs[1].val.clusterDim.x = GATE_BLOCKS;
    attrs[1].val.clusterDim.y = attrs[1].val.clusterDim.z = 1;
    launch.gridDim = dim3(GATE_BLOCKS);
    launch.blockDim = dim3(32, GATE_WARPS);
    launch.dynamicSmemBytes = (size_t)a.rows * a.d * 2;
    launch.stream = stream;
    launch.attrs = attrs;
    launch.numAttrs = 2;
    return cudaLaunchKernelEx(&launch, gate_kernel<CHUNKS, EACH>, a);
}

/* Whether the pending norm and product can go with the choice that follows: then all of it waits.
 */
bool hold(struct cuda_backend *cu, struct tensor ids, struct tensor weights, struct tensor bias,
          const struct router_config *config)
{
    struct cuda_pending *wait = &cu->pending;
    struct linear_part *product = &wait->product;
    struct gate_args a = {};

    a.d = (int)cuda_last_dim(&wait->x);
    a.rows = (int)wait->x.shape[0];
    if (a.rows > GATE_ROWS || a.d > GATE_D || a.d % 8 || config->experts > GATE_EXPERTS)
        return false;
    a.h = cuda_bf16(&wait->h);
    a.x = cuda_bf16(&wait->x);
    a.norm = cuda_f32(&wait->weight);
    a.eps = wait->eps;
    a.router = cuda_f32(&product->weight);
    a.logits = cuda_f32(&product->out);
    a.bias = bias.data ? cuda_f32(&bias) : NULL;
    a.ids = (int32_t *)ids.data;
    a.weights = cuda_f32(&weights);
    a.n_rows = cu->capturing ? cu->step.image.n_rows : NULL;
    a.config = *config;
    wait->norm = wait->router = 0;
    wait->choice = 1;
    wait->gate = a;
    return true;
}

} // namespace

void cuda_gate(struct cuda_backend *cu)
{
    const struct gate_args &a = cu->pending.gate;
    cudaError_t (*launch)(const gate_args &, cudaStream_t) =
        a.config.experts <= 64 ? a.d <= 2048 ? launch_gate<16, 2> : launch_gate<32, 2>
        : a.d <= 2048 ? launch_gate<16, 8>
                               : launch_gate<32, 8>;

    CUDA_CHECK(cu, launch(a, cu->stream));
}

void cuda_route(struct backend *be, struct tensor ids, struct tensor weights, struct tensor logits,
                struct tensor bias, const struct router_config *config)
{
    struct cuda_backend *cu = cuda_backend(be);
    struct router_config all = *config; /* identity experts are like the others */
    all.experts += config->identity;
    int rows = (int)logits.shape[0], n = all.experts, k = config->top_k;

    if (cu->pending.router && cu->pending.product.out.data == logits.data &&
        hold(cu, ids, weights, bias, &all)) {
        if (!cu->has_fp8) /* no experts that would take it along */
            cuda_settle(cu);
        return;
    }
    cuda_settle(cu);
    ASSERT(n <= MAX_CHOICES && k > 0 && k <= n && k <= 32 && cuda_last_dim(&logits) == n);
    ASSERT(config->groups <= 1 ||
           (n % config->groups == 0 && config->top_groups <= config->groups));
    ASSERT(ids.dtype == DTYPE_I32 && cuda_last_dim(&ids) == k && cuda_last_dim(&weights) == k);
    void (*kernel)(int32_t *, float *, const float *, const float *, const int32_t *, int,
                   router_config) = n <= 64    ? route_kernel<2>
                                    : n <= 256 ? route_kernel<8>
                                    : n <= 512 ? route_kernel<16>
                                               : route_kernel<MAX_CHOICES / 32>;
    const int32_t *n_rows = cu->capturing ? cu->step.image.n_rows : NULL;
    CUDA_CHECK(cu,
               launch_early(kernel, dim3((rows + ROWS - 1) / ROWS), dim3(32, ROWS), 0, cu->stream,
                            (int32_t *)ids.data, cuda_f32(&weights), cuda_f32(&logits),
                            bias.data ? cuda_f32(&bias) : NULL, n_rows, rows, all));
}
