/* Prefill attention for heads of 128 + 64 / 128 (DeepSeek, Kimi, Moonlight). */
#include "kernels/cuda/mla_prefill_kernel.cuh"

int prefill_attend_128(const struct prefill_attend *p, int sms, mla_stream stream)
{
    return launch_prefill<128, 128, PREFILL_KV_128>(p, sms, stream);
}
