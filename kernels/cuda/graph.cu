/* Decode steps as CUDA graphs: one for each of a ladder of sizes, recorded from the same operations
 * that run one by one otherwise. A step runs in the smallest graph that holds it; the rows left
 * over have kv_len 0, are stored nowhere and go to no expert.
 *
 * With an indexer each size is recorded twice: for steps of rows that attend to all they see, and
 * for those where tokens are chosen. */
#include "kernels/cuda/backend.cuh"

static const int32_t ladder[] = {1,   2,   4,   8,   16,  24,  32,  48,  64,  96,  128, 160,
                                 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024};

enum { LADDER = sizeof(ladder) / sizeof(ladder[0]) };
static_assert(2 * (int)LADDER <= (int)CUDA_MAX_GRAPHS, "each has its place");

/* The most sequences a decode step can have. */
static int32_t largest(const struct cuda_backend *cu)
{
    int32_t most = cu->limits.max_seqs;

    most = most < cu->limits.max_rows ? most : cu->limits.max_rows;
    most = most < cu->limits.max_logits ? most : cu->limits.max_logits;
    most = most < cu->absorb_rows ? most : cu->absorb_rows;
    return most < ladder[LADDER - 1] ? most : ladder[LADDER - 1];
}

int32_t cuda_capture_begin(struct backend *be, int32_t graph)
{
    struct cuda_backend *cu = cuda_backend(be);
    struct cuda_step *step = &cu->step;
    int32_t most = largest(cu), kinds = cu->index ? 2 : 1, size = graph / kinds;

    ASSERT(!cu->capturing && cu->n_flights == 0 && graph == cu->n_graphs);
    if (size >= LADDER || (size > 0 && ladder[size - 1] >= most))
        return 0;
    int32_t rows = ladder[size] < most ? ladder[size] : most;
    if (CUDA_CHECK(cu, cudaStreamBeginCapture(cu->stream, cudaStreamCaptureModeRelaxed)))
        return 0;
    cu->capturing = rows;
    step->image = step_image_at(cu->image, {rows, rows, rows, 0});
    step->rows = step->logits = rows;
    step->n_prefill = 0;
    step->n_groups = 1;
    step->settled = 1;
    step->groups[0] = {0, rows, 0, rows, 1};
    step->sparse = graph % kinds;
    step->sparse_prompt = 0;
    return rows;
}

int cuda_capture_end(struct backend *be, struct error *err)
{
    struct cuda_backend *cu = cuda_backend(be);
    struct cuda_graph *to = &cu->graphs[cu->n_graphs];
    cudaGraph_t graph = NULL;

    ASSERT(cu->capturing);
    cuda_settle(cu);
    to->rows = cu->capturing;
    to->sparse = cu->step.sparse;
    cu->capturing = 0;
    if (!CUDA_CHECK(cu, cudaStreamEndCapture(cu->stream, &graph)) &&
        !CUDA_CHECK(cu, cudaGraphInstantiate(&to->exec, graph, 0))) {
        CUDA_CHECK(cu, cudaGraphUpload(to->exec, cu->stream));
        cu->n_graphs++;
    }
    if (graph)
        cudaGraphDestroy(graph);
    return cuda_report(cu, err);
}

const struct cuda_graph *cuda_graph_for(const struct cuda_backend *cu, int32_t rows, int sparse)
{
    for (int32_t i = 0; i < cu->n_graphs; i++)
        if (cu->graphs[i].rows >= rows && cu->graphs[i].sparse == sparse)
            return &cu->graphs[i];
    return NULL;
}

void cuda_graphs_close(struct cuda_backend *cu)
{
    for (int32_t i = 0; i < cu->n_graphs; i++)
        cudaGraphExecDestroy(cu->graphs[i].exec);
    cu->n_graphs = 0;
}
