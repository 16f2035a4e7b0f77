/* mla_write against a reference in double: every value of the stored rows and of q, and that
 * nothing else changes. */
#include "kernels/mla.h"

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <math.h>
#include <random>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#define CUDA(call)                                                                                 \
    do {                                                                                           \
        cudaError_t e_ = (call);                                                                   \
        if (e_ != cudaSuccess) {                                                                   \
            printf("%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(e_));                     \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

typedef __nv_bfloat16 bf16;

struct shape {
    int latent, rope, heads, nope, rows, half_split, fp8;
};

static std::mt19937 rng(std::random_device{}());

static float normal()
{
    return std::normal_distribution<float>()(rng);
}

template <typename T> static T *upload(const std::vector<T> &host)
{
    T *device;

    CUDA(cudaMalloc(&device, host.size() * sizeof(T) + 16));
    CUDA(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
    return device;
}

template <typename T> static std::vector<T> download(const T *device, size_t n)
{
    std::vector<T> host(n);

    CUDA(cudaMemcpy(host.data(), device, n * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
}

static std::vector<bf16> random_bf16(size_t n)
{
    std::vector<bf16> v(n);

    for (bf16 &x : v)
        x = __float2bfloat16(normal());
    return v;
}

static int failures;

static void expect(bool ok, const char *what, int row, int col, double got, double want)
{
    if (ok || failures++ > 10)
        return;
    printf("  FAIL %s row %d col %d: got %.9g, want %.9g\n", what, row, col, got, want);
}

/* What the rope part x becomes at a position. */
static std::vector<double> rotated(const bf16 *x, int n, int position, const mla_rope &rope)
{
    std::vector<double> out(n);

    for (int i = 0; i < n / 2; i++) {
        int a = rope.half_split ? i : 2 * i, b = rope.half_split ? i + n / 2 : 2 * i + 1;
        float angle = (float)position * rope.inv_freq[i];
        double c = cos((double)angle) * rope.magnitude, s = sin((double)angle) * rope.magnitude;
        double p = __bfloat162float(x[a]), q = __bfloat162float(x[b]);
        out[a] = p * c - q * s;
        out[b] = q * c + p * s;
    }
    return out;
}

/* One row of the cache: `row` is what was stored for `in` at a position. */
static void check_row(const struct shape &s, const uint8_t *row, const bf16 *in, int position,
                      const std::vector<float> &norm, float eps, const mla_rope &rope, int r)
{
    const uint8_t *key = row + (s.fp8 ? s.latent + s.latent / 128 * 4 : 2 * s.latent);
    std::vector<double> want(s.latent), k = rotated(in + s.latent, s.rope, position, rope);
    double squares = 0;

    for (int i = 0; i < s.latent; i++)
        squares += (double)__bfloat162float(in[i]) * __bfloat162float(in[i]);
    for (int i = 0; i < s.latent; i++)
        want[i] = __bfloat162float(in[i]) / sqrt(squares / s.latent + eps) * norm[i];
    for (int i = 0; i < s.rope; i++) {
        double got = __bfloat162float(((const bf16 *)key)[i]);
        expect(fabs(got - k[i]) <= fabs(k[i]) / 256 + 1e-5, "key", r, i, got, k[i]);
    }
    if (!s.fp8) {
        for (int i = 0; i < s.latent; i++) {
            double got = __bfloat162float(((const bf16 *)row)[i]);
            expect(fabs(got - want[i]) <= fabs(want[i]) * 0.00392, "latent", r, i, got, want[i]);
        }
        return;
    }
    for (int g = 0; g < s.latent / 128; g++) {
        double amax = 0, scale = ((const float *)(row + s.latent))[g];
        for (int i = g * 128; i < g * 128 + 128; i++)
            amax = fmax(amax, fabs(want[i]));
        double least = exp2(ceil(log2(fmax(amax / 448, 1e-4) * (1 - 1e-6))));
        double most = exp2(ceil(log2(fmax(amax / 448, 1e-4) * (1 + 1e-6))));
        expect(scale == least || scale == most, "scale", r, g, scale, least);
        for (int i = g * 128; i < g * 128 + 128; i++) {
            __nv_fp8_e4m3 code;
            code.__x = row[i];
            double got = (float)code * scale,
                   slack = fmax(fabs(want[i]) / 16, scale / 1024) * 1.001;
            expect(fabs(got - want[i]) <= slack, "fp8", r, i, got, want[i]);
        }
    }
}

static mla_rope make_rope(const struct shape &s)
{
    mla_rope rope = {s.half_split, 1.25f, {}};

    for (int i = 0; i < s.rope / 2; i++)
        rope.inv_freq[i] = powf(10000, -2.0f * i / s.rope);
    return rope;
}

static void test(const struct shape &s)
{
    const int pages = s.rows / 64 + 3, head = s.nope + s.rope, width = s.latent + s.rope;
    const int kv_stride = width + 8;
    const size_t row_bytes = s.fp8 ? s.latent + s.latent / 128 * 4 + 2 * s.rope : (size_t)2 * width;
    const size_t page_stride = (row_bytes * 64 + 255) / 128 * 128;
    std::vector<uint8_t> cache(pages * page_stride, 0xff);
    std::vector<bf16> kv = random_bf16((size_t)s.rows * kv_stride);
    std::vector<bf16> q = random_bf16((size_t)s.rows * s.heads * head);
    std::vector<float> norm(s.latent);
    std::vector<int32_t> positions(s.rows);
    std::vector<int64_t> slots(pages * 64);
    int before = failures;

    for (float &x : norm)
        x = 1 + 0.5f * normal();
    for (size_t i = 0; i < slots.size(); i++)
        slots[i] = (int64_t)i;
    std::shuffle(slots.begin(), slots.end(), rng);
    slots.resize(s.rows);
    for (int r = 0; r < s.rows; r++) {
        positions[r] = (int)(rng() % (r % 3 ? 5000 : 1000000));
        if (s.rows > 1 && rng() % 8 == 0)
            slots[r] = -1;
        if (r % 5 == 4) /* small: the scale's floor */
            for (int i = 0; i < s.latent; i++)
                kv[(size_t)r * kv_stride + i] = __float2bfloat16(i < 128 ? 1e-4f : 3.0f);
    }
    mla_write_args a = {};
    a.cache = {upload(cache), (int64_t)page_stride,
               pages,         s.latent,
               s.rope,        s.fp8 ? MLA_KV_FP8 : MLA_KV_BF16};
    a.rows = s.rows;
    a.positions = upload(positions);
    a.slots = upload(slots);
    a.kv = upload(kv);
    a.kv_stride = kv_stride;
    a.norm = upload(norm);
    a.eps = 1e-6f;
    a.q = upload(q);
    a.heads = s.heads;
    a.nope_dim = s.nope;
    a.rope = make_rope(s);
    int status = mla_write(&a, 0);
    expect(status == MLA_OK, "status", 0, 0, status, 0);
    CUDA(cudaDeviceSynchronize());

    std::vector<uint8_t> got = download((uint8_t *)a.cache.pages, cache.size());
    std::vector<bf16> got_q = download((bf16 *)a.q, q.size());
    std::vector<char> written(cache.size());
    for (int r = 0; r < s.rows; r++) {
        for (int h = 0; h < s.heads; h++) {
            const size_t at = ((size_t)r * s.heads + h) * head;
            std::vector<double> want = rotated(&q[at + s.nope], s.rope, positions[r], a.rope);
            for (int i = 0; i < head; i++) {
                double x = __bfloat162float(got_q[at + i]);
                double y = i < s.nope ? __bfloat162float(q[at + i]) : want[i - s.nope];
                expect(fabs(x - y) <= (i < s.nope ? 0 : fabs(y) / 256 + 1e-5), "q", r, h * head + i,
                       x, y);
            }
        }
        if (slots[r] < 0)
            continue;
        size_t at = slots[r] / 64 * page_stride + slots[r] % 64 * row_bytes;
        memset(&written[at], 1, row_bytes);
        check_row(s, &got[at], &kv[(size_t)r * kv_stride], positions[r], norm, a.eps, a.rope, r);
    }
    for (size_t i = 0; i < got.size(); i++)
        if (!written[i])
            expect(got[i] == 0xff, "untouched byte", (int)(i / row_bytes), 0, got[i], 0xff);

    const void *all[] = {a.cache.pages, a.positions, a.slots, a.kv, a.norm, a.q};
    for (const void *p : all)
        CUDA(cudaFree((void *)p));
    printf("%s latent %d rope %d heads %d nope %d rows %d half_split %d fp8 %d\n",
           failures == before ? "ok  " : "FAIL", s.latent, s.rope, s.heads, s.nope, s.rows,
           s.half_split, s.fp8);
}

int main(void)
{
    static const struct shape shapes[] = {
        {512, 64, 16, 128, 1, 0, 0},  {512, 64, 128, 128, 130, 1, 0}, {512, 64, 20, 192, 77, 0, 1},
        {512, 64, 3, 128, 300, 1, 1}, {256, 32, 5, 64, 65, 0, 1},     {32, 16, 4, 16, 50, 0, 0},
        {64, 8, 2, 12, 33, 1, 0},     {36, 4, 1, 6, 9, 0, 0},         {1024, 128, 2, 128, 20, 1, 1},
    };

    for (const struct shape &s : shapes)
        test(s);
    printf(failures ? "FAILED\n" : "all passed\n");
    return failures != 0;
}
