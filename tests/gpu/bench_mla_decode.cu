/* mla_decode beside the peer's stored times: FlashMLA 9241ae3 on one H100 80GB HBM3, bf16, page 64,
 * causal, uniform lengths, random page order; a CUDA graph of 20 calls with every launch they make,
 * median of 5 replays / 20. Roofline: the larger of bytes / 3.10 TB/s and FLOPs / 783 TFLOP/s, as
 * measured on that card. A rest of 0.3 s goes before each case: long cases at 128 heads draw more
 * than the card's 700 W, and what ran before would decide when it lowers its clock.
 *
 * Each case is timed as a decode step makes its calls: `settled`, since lengths, tables and all but
 * a sequence's last rows come from earlier steps. After it, without: "waits".
 *
 * With `turns` the calls of a graph go round three caches in turn, as layers do: of one cache that
 * every call reads, a part may still be in L2.
 *
 *   bench_mla_decode [fp8] [turns] */
#include "tests/gpu/mla_case.cuh"

#include <time.h>

#include <algorithm>
#include <memory>
#include <string.h>

static const int SIZES[11][2] = {{1, 1024},   {1, 8192},    {1, 65536}, {4, 4096},
                                 {16, 4096},  {32, 4096},   {64, 4096}, {128, 1024},
                                 {128, 4096}, {128, 16384}, {256, 2048}};
static const int COLUMNS[6][2] = {{16, 1}, {16, 2}, {32, 1}, {64, 1}, {128, 1}, {128, 2}};
static const float PEER[11][6] = {{0.0107, 0.0118, 0.0116, 0.0135, 0.0143, 0.0175},
                                  {0.0245, 0.0248, 0.0250, 0.0276, 0.0258, 0.0293},
                                  {0.0575, 0.0595, 0.0601, 0.0637, 0.0581, 0.0915},
                                  {0.0182, 0.0203, 0.0206, 0.0226, 0.0283, 0.0412},
                                  {0.0347, 0.0362, 0.0360, 0.0423, 0.0476, 0.0749},
                                  {0.0592, 0.0609, 0.0605, 0.0680, 0.0772, 0.1091},
                                  {0.1100, 0.1123, 0.1118, 0.1236, 0.1279, 0.2161},
                                  {0.0563, 0.0582, 0.0574, 0.0598, 0.0755, 0.1385},
                                  {0.2085, 0.2099, 0.2092, 0.2123, 0.2462, 0.4476},
                                  {0.8118, 0.8516, 0.8482, 0.8743, 1.0089, 1.8325},
                                  {0.2100, 0.2113, 0.2114, 0.2234, 0.2885, 0.4923}};

static float time_ms(const std::vector<mla_decode_args> &turns)
{
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t begin, end;
    std::vector<float> times;
    const struct timespec rest = {0, 300000000};

    CHECK_CUDA(cudaStreamCreate(&stream));
    CHECK_CUDA(cudaEventCreate(&begin));
    CHECK_CUDA(cudaEventCreate(&end));
    CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int i = 0; i < 20; i++)
        if (mla_decode(&turns[i % turns.size()], stream) != MLA_OK)
            exit(3);
    CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
    CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    nanosleep(&rest, NULL);
    for (int i = 0; i < 7; i++) {
        float ms;
        CHECK_CUDA(cudaEventRecord(begin, stream));
        CHECK_CUDA(cudaGraphLaunch(exec, stream));
        CHECK_CUDA(cudaEventRecord(end, stream));
        CHECK_CUDA(cudaEventSynchronize(end));
        CHECK_CUDA(cudaEventElapsedTime(&ms, begin, end));
        if (i >= 2)
            times.push_back(ms / 20);
    }
    std::sort(times.begin(), times.end());
    cudaGraphExecDestroy(exec), cudaGraphDestroy(graph), cudaStreamDestroy(stream);
    return times[2];
}

int main(int argc, char **argv)
{
    bool fp8 = false;
    int caches = 1;
    double product = 1, worst = 1e9, column_product[6] = {1, 1, 1, 1, 1, 1};

    for (int i = 1; i < argc; i++) {
        fp8 |= !strcmp(argv[i], "fp8");
        caches = !strcmp(argv[i], "turns") ? 3 : caches;
    }
    printf(
        "   b   s_k   H s_q        ms    peer  ratio   GB/s  TFLOP/s  roofline     waits  ratio\n");
    for (int i = 0; i < 11; i++)
        for (int j = 0; j < 6; j++) {
            int b = SIZES[i][0], kv = SIZES[i][1], h = COLUMNS[j][0], q = COLUMNS[j][1];
            std::vector<std::unique_ptr<mla_setup>> setups;
            std::vector<mla_decode_args> turns;
            for (int k = 0; k < caches; k++) {
                mla_case c = {b, q, kv, h, false, true, fp8, false, 0, 0};
                setups.emplace_back(new mla_setup(c, 1000 + i * 6 + j + 100 * k));
                turns.push_back(setups[k]->args);
            }
            for (mla_decode_args &a : turns)
                a.settled = 1;
            double ms = time_ms(turns);
            for (mla_decode_args &a : turns)
                a.settled = 0;
            double waits = time_ms(turns);
            double bytes =
                (double)b * kv * row_bytes_of(fp8, 512, 64) + (double)b * q * h * (576 + 512) * 2;
            double flops = (double)b * q * h * kv * 2 * (576 + 512);
            double roof = std::max(bytes / 3.10e9, flops / 783e9), ratio = PEER[i][j] / ms;
            product *= pow(ratio, 1 / 66.0);
            column_product[j] *= pow(ratio, 1 / 11.0);
            worst = std::min(worst, ratio);
            printf("%4d %5d %3d  %d  %9.4f %7.4f  %5.2f  %5.0f  %7.1f  %8.2f  %8.4f  %5.2f\n", b,
                   kv, h, q, ms, PEER[i][j], ratio, bytes / ms / 1e6, flops / ms / 1e9, roof / ms,
                   waits, PEER[i][j] / waits);
        }
    printf("geometric mean of peer / ours: %.3f; lowest %.3f; by column %.2f %.2f %.2f %.2f %.2f "
           "%.2f\n",
           product, worst, column_product[0], column_product[1], column_product[2],
           column_product[3], column_product[4], column_product[5]);
    return 0;
}
