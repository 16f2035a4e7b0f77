/* How a model gets its memory, in this order: the backend's own, the weights, the working memory of
 * a step, and the KV cache in what is left. What can be known before the weights are read is
 * checked before. */
#include "server/engine_core.h"

#include "base/clock.h"
#include "base/log.h"

#include <string.h>

enum {
    DEFAULT_CPU_ROWS = 512,
    DEFAULT_GPU_ROWS = 8192,
    DEFAULT_CPU_CACHE_MIB = 1024,
    MAX_SCORED = 256,
};

static double gib(uint64_t bytes)
{
    return (double)bytes / (1 << 30);
}

int engine_core_configure(struct engine_core *core, const struct options *options, const char *path,
                          struct error *err)
{
    size_t len = strlen(path);

    if (!options->dummy_weights && len > 5 && strcmp(path + len - 5, ".json") == 0)
        return error_set(err,
                         "--model %s is a file: only with --dummy-weights a config.json is "
                         "enough",
                         path);
    return model_config_load(&core->config, path, err);
}

/* ---- backend ------------------------------------------------------------------------------ */

/* Whether the GPU is to be used; -1 when it is asked for and can't be. */
static int wants_cuda(const struct options *o, struct error *err)
{
    if (strcmp(o->device, "cpu") == 0)
        return 0;
#ifdef MLAD_CUDA
    int devices = backend_cuda_devices();
    if (devices > 0)
        return 1;
    if (devices < 0)
        return error_set(err, "the NVIDIA driver is too old: this build needs one for CUDA 13 "
                              "(580 or newer); --device cpu does without it");
    if (strcmp(o->device, "cuda") == 0)
        return error_set(err,
                         "--device cuda: there is no NVIDIA GPU of the Hopper generation here, "
                         "or no driver for CUDA 13");
#else
    if (strcmp(o->device, "cuda") == 0)
        return error_set(err, "--device cuda: this build has the CPU backend only");
#endif
    return 0;
}

static int choose_kv_dtype(const struct options *o, bool cuda, const struct model_config *config,
                           enum dtype *dtype, struct error *err)
{
    bool is_auto = strcmp(o->kv_dtype, "auto") == 0, is_f32 = strcmp(o->kv_dtype, "f32") == 0;

    if (!is_auto && is_f32 == cuda)
        return error_set(err, "--kv-dtype %s is not for %s", o->kv_dtype,
                         cuda ? "GPUs, which keep bf16 or fp8" : "the CPU, which keeps f32");
    *dtype = !cuda ? DTYPE_F32 : strcmp(o->kv_dtype, "fp8") == 0 ? DTYPE_F8_E4M3 : DTYPE_BF16;
    if (*dtype == DTYPE_F8_E4M3 && (config->mla.kv_lora_rank != 512 || config->mla.rope_dim != 64))
        return error_set(err,
                         "--kv-dtype fp8 is for latents of 512 and rope keys of 64 values; "
                         "this model has %d and %d",
                         config->mla.kv_lora_rank, config->mla.rope_dim);
    return 0;
}

static int open_backend(struct engine_core *core, const struct options *o, int32_t slots,
                        struct error *err)
{
    int cuda = wants_cuda(o, err);
    struct backend_options options = {
        .threads = (int32_t)o->threads,
        .slots = slots,
        .vocab_size = core->config.vocab_size,
        .batch_invariant = o->batch_invariant,
    };
    struct scheduler_config *sc = &core->sched;
    int64_t rows = o->max_num_batched_tokens;

    if (cuda < 0 || choose_kv_dtype(o, cuda, &core->config, &options.kv_dtype, err))
        return -1;
    if (rows == 0)
        rows = cuda ? DEFAULT_GPU_ROWS : DEFAULT_CPU_ROWS;
    if (rows < o->max_num_seqs && o->max_num_batched_tokens == 0)
        rows = o->max_num_seqs;
    if (rows < o->max_num_seqs)
        return error_set(err, "--max-num-batched-tokens %lld is less than --max-num-seqs %lld",
                         (long long)rows, (long long)o->max_num_seqs);
    *sc = (struct scheduler_config){
        .slots = slots,
        .max_running = (int32_t)o->max_num_seqs,
        .max_rows = (int32_t)rows,
        .max_scored = MAX_SCORED,
        .max_model_len = o->max_model_len ? (int32_t)o->max_model_len : core->config.max_positions,
        .prefix_caching = o->enable_prefix_caching,
    };
    options.limits = scheduler_config_limits(sc);
#ifdef MLAD_CUDA
    core->be = cuda ? backend_cuda_open(&options, err) : backend_cpu_open(&options);
#else
    core->be = backend_cpu_open(&options);
#endif
    core->look_ahead = strcmp(o->look_ahead, "auto") == 0 ? cuda : strcmp(o->look_ahead, "on") == 0;
    return core->be ? 0 : -1;
}

static bool on_gpu(const struct engine_core *core)
{
    return strcmp(core->be->ops->name, "cpu") != 0;
}

/* ---- memory ------------------------------------------------------------------------------- */

/* Bytes that may still be taken: of a GPU the share of all of it, less what is used already. */
static uint64_t bytes_left(const struct engine_core *core, const struct options *o)
{
    size_t free_bytes, total;

    core->be->ops->memory(core->be, &free_bytes, &total);
    if (!on_gpu(core))
        return total;
    uint64_t allowed = (uint64_t)((double)total * o->gpu_memory_utilization);
    uint64_t used = total - free_bytes;
    return allowed > used ? allowed - used : 0;
}

/* Refuses a model whose weights alone can't fit, before they are read. */
static int check_weights_fit(const struct engine_core *core, const struct options *o,
                             struct error *err)
{
    /* FP8 is multiplied out where it can't stay: to bf16 on a GPU, to f32 on a CPU. */
    bool wide = !on_gpu(core) && core->config.quantization != QUANT_NONE;
    enum dtype dtype = wide ? DTYPE_F32 : DTYPE_BF16;
    uint64_t wanted = model_weight_bytes(&core->config, dtype_size(dtype), core->be);
    uint64_t left = bytes_left(core, o);

    if (wanted < left)
        return 0;
    if (on_gpu(core))
        return error_set(err,
                         "the model does not fit: its weights take %.1f GiB there, and "
                         "--gpu-memory-utilization %.2f leaves %.1f GiB of this GPU's memory",
                         gib(wanted), o->gpu_memory_utilization, gib(left));
    return error_set(
        err,
        "the model does not fit: its weights take %.1f GiB in %s, and this machine has "
        "%.1f GiB of memory",
        gib(wanted), wide ? "f32" : "bf16", gib(left));
}

/* The size of the KV cache that the options ask for, or that memory allows. */
static int64_t pages_wanted(const struct engine_core *core, const struct options *o)
{
    size_t page_bytes = KV_PAGE_TOKENS * model_kv_token_bytes(&core->config, core->be->kv_dtype);
    uint64_t bytes = (uint64_t)o->kv_cache_memory_mib << 20;

    if (o->num_kv_pages)
        return o->num_kv_pages;
    if (bytes == 0)
        bytes = on_gpu(core) ? bytes_left(core, o) : (uint64_t)DEFAULT_CPU_CACHE_MIB << 20;
    return (int64_t)(bytes / page_bytes);
}

/* Says what is in the way of a larger cache. */
static int refuse_cache(const struct engine_core *core, const struct options *o, int64_t pages,
                        struct error *err)
{
    bool asked = o->num_kv_pages || o->kv_cache_memory_mib || !on_gpu(core);

    if (asked && pages < 1)
        return error_set(err,
                         "a KV cache of %lld pages can't be made (--kv-cache-memory-mib, "
                         "--num-kv-pages)",
                         (long long)pages);
    if (asked)
        return error_set(err,
                         "--max-model-len %lld does not fit in a KV cache of %lld pages of %d "
                         "tokens",
                         (long long)o->max_model_len, (long long)pages, KV_PAGE_TOKENS);
    return error_set(err,
                     "the model does not fit: beside its weights (%.1f GiB) and working memory, "
                     "--gpu-memory-utilization %.2f leaves room for %lld tokens of KV cache%s",
                     gib(model_weight_bytes(&core->config, dtype_size(DTYPE_BF16), core->be)),
                     o->gpu_memory_utilization, (long long)pages * KV_PAGE_TOKENS,
                     o->max_model_len ? ", fewer than --max-model-len" : "");
}

/* Settles the number of pages and, by it, the longest context. */
static int size_cache(struct engine_core *core, const struct options *o, struct error *err)
{
    int64_t pages = pages_wanted(core, o), len = core->sched.max_model_len;

    if (pages > INT32_MAX / KV_PAGE_TOKENS)
        pages = o->num_kv_pages ? 0 : INT32_MAX / KV_PAGE_TOKENS;
    if (pages < 1 || (o->max_model_len && len > pages * KV_PAGE_TOKENS))
        return refuse_cache(core, o, pages, err);
    if (len > pages * KV_PAGE_TOKENS) {
        len = pages * KV_PAGE_TOKENS;
        log_warning("the KV cache of %lld pages limits requests to %lld tokens", (long long)pages,
                    (long long)len);
    }
    core->sched.max_model_len = (int32_t)len;
    core->sched.kv_pages = (int32_t)pages;
    return 0;
}

/* ---- loading ------------------------------------------------------------------------------ */

int engine_core_load(struct engine_core *core, const struct options *o, const char *path,
                     int32_t slots, const atomic_int *cancel, struct error *err)
{
    struct model_config *config = &core->config;
    int64_t opened, loaded, reserved, *us = core->load_us, start = clock_us();

    if (o->max_model_len > config->max_positions)
        return error_set(err, "--max-model-len %lld is more than the model's %d positions",
                         (long long)o->max_model_len, config->max_positions);
    if (o->load_mtp && model_want_mtp(config, o->dummy_weights ? NULL : path, err))
        return -1;
    if (o->load_mtp && config->mtp_layers == 0)
        log_warning("--load-mtp: this model has no layers of multi-token prediction");
    if (open_backend(core, o, slots, err) || check_weights_fit(core, o, err))
        return -1;
    /* What the options alone decide is refused before the weights are read. */
    if ((o->num_kv_pages || o->kv_cache_memory_mib || !on_gpu(core)) && size_cache(core, o, err))
        return -1;
    opened = clock_us();
    core->model = model_load(o->dummy_weights ? NULL : path, config, core->be, cancel, err);
    if (!core->model)
        return -1;
    loaded = clock_us();
    if (model_reserve(core->model, scheduler_config_limits(&core->sched), err) ||
        (core->sched.kv_pages == 0 && size_cache(core, o, err)))
        return -1;
    reserved = clock_us();
    if (model_open_cache(core->model, core->sched.kv_pages, err))
        return -1;
    us[LOAD_BACKEND] = opened - start;
    us[LOAD_WEIGHTS] = loaded - opened;
    us[LOAD_MEMORY] = reserved - loaded;
    us[LOAD_CACHE] = clock_us() - reserved;
    log_info("%s backend: opened in %lld ms, weights in %lld ms, working memory in %lld ms, cache "
             "and graphs in %lld ms",
             core->be->ops->name, (long long)us[LOAD_BACKEND] / 1000,
             (long long)us[LOAD_WEIGHTS] / 1000, (long long)us[LOAD_MEMORY] / 1000,
             (long long)us[LOAD_CACHE] / 1000);
    return 0;
}

void engine_core_close(struct engine_core *core)
{
    if (core->model)
        model_free(core->model);
    if (core->be)
        core->be->ops->close(core->be);
    core->model = NULL;
    core->be = NULL;
}
