/* What the parts of moe_few.cuh share: its parameters, its shared memory, and what is kept between
 * launches. */
#pragma once

#include "kernels/cuda/gemm_stream.cuh"
#include "kernels/cuda/moe_few.h"
#include "kernels/cuda/moe_internal.h"

enum {
    FEW_LIST = FEW_PAIRS + MOE_MAX_SLOTS,
    FEW_WARPS = 8, /* of a group */
    FEW_MATH = 2 * FEW_WARPS,
    FEW_STORE = FEW_MATH,     /* two warps that store */
    FEW_FETCH = FEW_MATH + 2, /* list, x, hidden */
    FEW_COPY = FEW_MATH + 3,  /* weights */
    FEW_THREADS = (FEW_MATH + 4) * 32,
    FEW_LAG = 5,     /* experts between the product of gate and up and that of down */
    FEW_DEPTH = 4,   /* steps that are asked for and not there, at most; */
    FEW_SHY = 2,     /* while the kernels ahead run, which want the memory too; */
    FEW_SHIEST = 1,  /* and while a choice is made here, whose logits cross the chip */
    FEW_STAGES = 12, /* at most */
    FEW_STEP_BYTES = 16384,
    FEW_PITCH = 20, /* floats of a token's sums; 4 more than 16: no bank conflicts */
    FEW_SUMS = FEW_MATH * FEW_ROWS * FEW_PITCH,
};

/* What is kept between launches, zero before the first. */
struct few_room {
    uint32_t launch; /* number of the last one */
    uint32_t done;   /* blocks of this one that need no more of `launch` */
    uint64_t unused;
    uint64_t logits[GATE_EXPERTS]; /* below the launch's number */
    uint64_t pairs[];              /* (places, i / 2) two hidden values, likewise */
};
static_assert(sizeof(struct few_room) + 2 * FEW_TOKEN_BYTES <= MOE_FEW_ROOM, "pairs have room");

enum few_matrix { FEW_GATE, FEW_UP, FEW_DOWN };

template <class R, class S> struct few_params {
    CUtensorMap matrices[2][3]; /* experts', the shared ones'; by few_matrix */
    typename R::scales routed[3];
    typename S::scales shared_scales[3];
    const char *x;
    const int32_t *ids;
    const float *weights;
    struct few_room *room;
    struct gate_args gate; /* x NULL: the choice is made */
    const __nv_bfloat16 *residual;
    __nv_bfloat16 *out;
    int64_t x_stride, out_stride;
    int32_t m, d, i, top_k, shared, stages, token_bytes;
    int32_t gate_steps[2], down_steps[2]; /* of a tile, by the format */
    int32_t gate_tiles, down_tiles;       /* of an expert; of the output */
};

/* What every block knows of the routing, and the launch's number. A row's place among the rows of
 * hidden values; -1: none. */
struct alignas(8) few_list {
    int32_t n;
    uint32_t launch;
    int32_t picked; /* experts of a choice made here that are in the list already */
    int32_t expert[FEW_LIST];
    int16_t place[FEW_LIST][FEW_ROWS];
    float weight[FEW_LIST][FEW_ROWS];
};

/* What the choice of experts needs (moe_few_choice.cuh). */
struct few_choice {
    float squares[FEW_MATH];           /* sums over a warp's columns: of x squared, */
    float products[FEW_OWN][FEW_MATH]; /* of h with a router's row of this block */
    float logits[GATE_EXPERTS], room[GATE_EXPERTS], bias[GATE_EXPERTS];
};

struct few_bars {
    uint64_t full[FEW_STAGES], empty[FEW_STAGES];
    uint64_t summed[2], read[2];     /* the two places of sums */
    uint64_t begun, listed, x_there; /* begun: the launch's number is known, and the list's part
                                        that does not depend on the choice */
    uint64_t hidden[FEW_LIST];
};

template <class R, class S> struct few_memory {
    enum {
        SCALE_BYTES =
            (int)R::SCALE_BYTES > (int)S::SCALE_BYTES ? (int)R::SCALE_BYTES : (int)S::SCALE_BYTES
    };
    char *ring, *tokens;
    char *scales; /* (stages) of SCALE_BYTES */
    float *sums;  /* two of FEW_SUMS */
    struct few_list *list;
    struct few_choice *choice;
    struct few_bars *bars;

    __device__ few_memory(char *raw, int stages, int token_bytes)
    {
        ring = raw + ((1024 - (smem_u32(raw) & 1023)) & 1023);
        scales = ring + stages * FEW_STEP_BYTES;
        tokens = scales + stages * SCALE_BYTES;
        sums = (float *)(tokens + token_bytes);
        bars = (struct few_bars *)(sums + 2 * FEW_SUMS);
        list = (struct few_list *)(bars + 1);
        choice = (struct few_choice *)(list + 1); /* if there is one */
    }

    __device__ uint32_t full(int stage) const
    {
        return smem_u32(&bars->full[stage]);
    }

    __device__ uint32_t empty(int stage) const
    {
        return smem_u32(&bars->empty[stage]);
    }
};

static inline size_t few_fixed_bytes(bool chooses)
{
    return 1024 + 2 * FEW_SUMS * sizeof(float) + sizeof(struct few_bars) + sizeof(struct few_list) +
           (chooses ? sizeof(struct few_choice) : 0);
}

/* Whether the choice is made here. */
template <class R, class S>
__device__ __forceinline__ bool few_is_choosing(const few_params<R, S> &p)
{
    return R::CHOOSES && p.gate.x;
}

/* Two words of 64 bits, and whether the number of this launch stands in both. */
__device__ __forceinline__ bool few_load_pairs(uint64_t (&v)[2], const uint64_t *from,
                                               uint32_t launch)
{
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
                 : "=l"(v[0]), "=l"(v[1])
                 : "l"(from)
                 : "memory");
    return (uint32_t)(v[0] >> 32) == launch && (uint32_t)(v[1] >> 32) == launch;
}

__device__ __forceinline__ void few_store_word(uint64_t *to, uint32_t launch, uint32_t word)
{
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"((uint64_t)launch << 32 | word)
                 : "memory");
}
