/* The CUDA backend's life: opening, working memory, failures, and the table of its operations,
 * which stand one a file beside this one. backend.cuh says how it works. */
#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/indexer.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool cuda_failed(struct cuda_backend *cu, cudaError_t rc, const char *what)
{
    if (rc == cudaSuccess)
        return false;
    std::lock_guard<std::mutex> guard(*cu->fault_lock);
    if (cu->fault == cudaSuccess) {
        cu->fault = rc;
        snprintf(cu->fault_text, sizeof(cu->fault_text), "%s: %s (%s)", what,
                 cudaGetErrorString(rc), cudaGetErrorName(rc));
    }
    return true;
}

void cuda_check_launch(struct cuda_backend *cu, int rc, const char *what)
{
    if (rc == 0)
        return;
    cudaError_t error = cudaGetLastError();
    cuda_failed(cu, error != cudaSuccess ? error : cudaErrorInvalidValue, what);
}

int cuda_report(struct cuda_backend *cu, struct error *err)
{
    std::lock_guard<std::mutex> guard(*cu->fault_lock);

    if (cu->fault == cudaSuccess)
        return 0;
    return error_set(err, "the GPU failed: %s", cu->fault_text);
}

void *cuda_take(struct cuda_backend *cu, size_t bytes, bool zero, const char *what,
                struct error *err)
{
    size_t free_bytes = 0, total = 0;
    void *block = NULL;
    cudaError_t rc = cudaMalloc(&block, bytes ? bytes : 1);

    if (rc == cudaErrorMemoryAllocation) {
        cudaGetLastError(); /* the next call must not report it again */
        cudaMemGetInfo(&free_bytes, &total);
        error_set(err, "not enough GPU memory for %s: %zu MiB wanted, %zu of %zu MiB free", what,
                  bytes >> 20, free_bytes >> 20, total >> 20);
        return NULL;
    }
    if (cuda_failed(cu, rc, "cudaMalloc") ||
        (zero && (CUDA_CHECK(cu, cudaMemsetAsync(block, 0, bytes, cu->stream)) ||
                  CUDA_CHECK(cu, cudaStreamSynchronize(cu->stream))))) {
        cuda_report(cu, err);
        return NULL;
    }
    return block;
}

static void cuda_close(struct backend *be)
{
    struct cuda_backend *cu = cuda_backend(be);

    cudaStreamSynchronize(cu->stream);
    cuda_graphs_close(cu);
    cuda_steps_close(cu);
    cuda_sampler_free(cu);
    cuda_index_free(cu);
    cudaFree(cu->q_latent);
    cudaFree(cu->o_latent);
    cudaFree(cu->decode_work);
    cudaFree(cu->prefill_work);
    cudaFree(cu->moe_work);
    cudaFree(cu->fp8_work);
    if (cu->stream)
        cudaStreamDestroy(cu->stream);
    if (cu->side_stream)
        cudaStreamDestroy(cu->side_stream);
    delete cu->fault_lock;
    free(cu);
}

static int cuda_reserve(struct backend *be, const struct backend_shapes *shapes, struct error *err)
{
    struct cuda_backend *cu = cuda_backend(be);

    cu->shapes = *shapes;
    if (cuda_linear_reserve(cu, err) || cuda_attention_reserve(cu, err) ||
        cuda_index_reserve(cu, err) || cuda_moe_reserve(cu, err))
        return -1;
    return 0;
}

static const struct backend_ops cuda_ops = {
    .name = "cuda",
    .close = cuda_close,
    .memory = cuda_memory,
    .alloc = cuda_alloc,
    .download = cuda_download,
    .release = cuda_release,
    .alloc_weight = cuda_alloc_weight,
    .upload = cuda_upload,
    .fill_random = cuda_fill_random,
    .stage_alloc = cuda_stage_alloc,
    .stage_free = cuda_stage_free,
    .reserve = cuda_reserve,
    .begin = cuda_begin,
    .finish = cuda_finish,
    .capture_begin = cuda_capture_begin,
    .capture_end = cuda_capture_end,
    .embed = cuda_embed,
    .rmsnorm = cuda_rmsnorm,
    .linear = cuda_linear,
    .gated = cuda_gated,
    .rope_kv_write = cuda_rope_kv_write,
    .index_tokens = cuda_index_tokens,
    .mla_prefill = cuda_mla_prefill,
    .mla_decode = cuda_mla_decode,
    .scale_by_position = cuda_scale_by_position,
    .route = cuda_route,
    .identity_experts = cuda_identity_experts,
    .moe = cuda_moe,
    .add = cuda_add,
    .concat = cuda_concat,
    .gather_logit_rows = cuda_gather_logit_rows,
    .sampler_open = cuda_sampler_open,
    .sampler_close = cuda_sampler_close,
    .sample = cuda_sample,
};

/* The number of the n-th GPU of compute capability 9.0, or how many there are through `count`. */
static int hopper(int n, int *count)
{
    int devices = 0, found = -1;

    *count = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess) {
        cudaGetLastError();
        return -1;
    }
    for (int i = 0; i < devices; i++) {
        int major = 0, minor = 0;
        if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, i) != cudaSuccess ||
            cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, i) != cudaSuccess ||
            major != 9 || minor != 0)
            continue;
        if ((*count)++ == n)
            found = i;
    }
    return found;
}

int backend_cuda_devices(void)
{
    int count, driver = 0, runtime = 0;

    if (cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0 &&
        cudaRuntimeGetVersion(&runtime) == cudaSuccess && driver / 1000 < runtime / 1000)
        return -1;
    hopper(0, &count);
    return count;
}

static int start(struct cuda_backend *cu, struct error *err)
{
    if (CUDA_CHECK(cu, cudaSetDevice(cu->device)) ||
        CUDA_CHECK(cu,
                   cudaDeviceGetAttribute(&cu->sms, cudaDevAttrMultiProcessorCount, cu->device)) ||
        CUDA_CHECK(cu, cudaStreamCreateWithFlags(&cu->stream, cudaStreamNonBlocking)) ||
        CUDA_CHECK(cu, cudaStreamCreateWithFlags(&cu->side_stream, cudaStreamNonBlocking)))
        return cuda_report(cu, err);
    return cuda_steps_open(cu, err) || cuda_sampler_init(cu, err) ? -1 : 0;
}

struct backend *backend_cuda_open(const struct backend_options *options, struct error *err)
{
    int count, device = hopper(options->device, &count);

    if (device < 0) {
        error_set(err, "there is no GPU %d: of NVIDIA's Hopper generation there are %d",
                  options->device, count);
        return NULL;
    }
    ASSERT(options->kv_dtype == DTYPE_BF16 || options->kv_dtype == DTYPE_F8_E4M3);
    ASSERT(options->limits.max_rows > 0 && options->slots > 0 && options->vocab_size > 0);
    struct cuda_backend *cu = (struct cuda_backend *)mem_zalloc(1, sizeof(*cu));
    cu->base.ops = &cuda_ops;
    cu->base.activation_dtype = DTYPE_BF16;
    cu->base.kv_dtype = options->kv_dtype;
    cu->base.keeps_fp8 = 1;
    cu->base.keeps_int4 = 1;
    cu->limits = options->limits;
    if (cu->limits.max_logits == 0)
        cu->limits.max_logits = cu->limits.max_seqs;
    cu->n_slots = options->slots;
    cu->vocab_size = options->vocab_size;
    cu->batch_invariant = options->batch_invariant;
    cu->device = device;
    cu->fault_lock = new std::mutex;
    if (start(cu, err)) {
        cuda_close(&cu->base);
        return NULL;
    }
    return &cu->base;
}
