/* Prefill attention for heads of 192 + 64 / 256 (GLM). */
#include "kernels/cuda/mla_prefill_kernel.cuh"

int prefill_attend_256(const struct prefill_attend *p, int sms, mla_stream stream)
{
    return launch_prefill<192, 256, PREFILL_KV_256>(p, sms, stream);
}
