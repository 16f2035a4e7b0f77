/* A kernel that fails: the steps under way and all later ones end with -1 and CUDA's words, nothing
 * hangs, and the backend can be closed. (What the daemon then does is tested with --fail-at-step.)
 * A program of its own: the process can't use its GPU afterwards. */
extern "C" {
#include "base/memory.h"
}
#include "kernels/backend.h"

#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { VOCAB = 64, MAX_SECONDS = 30 };

static int failures;

static void check(bool right, const char *what)
{
    printf("%s %s\n", right ? "ok  " : "FAIL", what);
    failures += !right;
}

static __global__ void illegal_store(int *nowhere)
{
    *nowhere = 1;
}

/* The address is none of the GPU's; waits until the failure is there. */
static bool break_gpu(void)
{
    illegal_store<<<1, 1>>>((int *)64);
    return cudaDeviceSynchronize() != cudaSuccess;
}

static void queue_step(struct backend *be, struct tensor logits, struct sampling_result *result)
{
    struct batch *b = batch_new({1, 1, 1, 0});
    struct batch_seq seq = {};
    int32_t token = 3, page = 0;

    seq.n_rows = seq.kv_len = seq.absorbed = seq.wants_logits = 1;
    batch_add(b, seq, &token, &page, 0);
    be->ops->begin(be, b);
    be->ops->sample(be, logits, NULL, result);
    free(b);
}

int main(void)
{
    struct sampling_params greedy = {};
    struct sampling_result results[2];
    struct backend_options options = {};
    struct tensor logits;
    struct error err = {};
    int64_t shape[] = {1, VOCAB};

    alarm(MAX_SECONDS); /* a hang ends the test */
    options.slots = 1;
    options.vocab_size = VOCAB;
    options.limits = {1, 1, 1, 0};
    options.kv_dtype = DTYPE_BF16;
    struct backend *be = backend_cuda_open(&options, &err);
    if (!be || be->ops->alloc(be, &logits, DTYPE_F32, 2, shape, &err)) {
        printf("%s\n", err.message);
        return 1;
    }
    greedy.top_p = greedy.repetition_penalty = 1;
    be->ops->sampler_open(be, 0, &greedy, NULL, 0);

    queue_step(be, logits, &results[0]);
    check(be->ops->finish(be, &err) == 0, "a step before the fault");
    queue_step(be, logits, &results[0]);
    check(break_gpu(), "the GPU is broken");
    queue_step(be, logits, &results[1]);
    check(be->ops->finish(be, &err) == -1, "the step under way");
    check(strstr(err.message, "the GPU failed") && strstr(err.message, "illegal"), err.message);
    err.message[0] = 0;
    check(be->ops->finish(be, &err) == -1, "the step queued after the fault");
    check(strstr(err.message, "the GPU failed") != NULL, err.message);
    queue_step(be, logits, &results[0]);
    check(be->ops->finish(be, &err) == -1, "a later step");
    be->ops->sampler_close(be, 0);
    be->ops->close(be);
    check(true, "closed");
    printf(failures ? "%d FAILED\n" : "all passed\n", failures);
    return failures != 0;
}
