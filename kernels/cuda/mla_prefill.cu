/* mla_prefill: cuts the work in pieces that fit the workspace, and for each group of heads and
 * piece
 *
 *   gather   cache rows of the piece -> latent (rows, latent_dim), rope key (rows, rope_dim)
 *   expand   latent times the group's rows of kv_b -> kv (rows, group * (nope + v))
 *   attend   tiles of 128 query rows against what they see of the piece
 *
 * Sequences stand in a piece one after the other, padded to PREFILL_BLOCK tokens; one that has more
 * than the piece holds goes on in the next, with the softmax of its rows resting in the workspace.
 * Groups of heads rather than pieces are what a small workspace gets first: a group costs nothing
 * but smaller launches, a piece needs the gather again.
 *
 * Workspace: lists | latent | rope | kv | state; the lists (counters, tiles, blocks) come from the
 * host in kernel parameters, so no copy is waited for and a graph can hold the call. */
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mla_internal.h"
#include "kernels/cuda/mla_prefill.h"
#include "kernels/cuda/ptx.cuh"

#include <algorithm>
#include <vector>

namespace
{

enum {
    GROUP_HEADS = 16,         /* fewer a launch only when the model has fewer */
    SECTION_BYTES = 32 << 20, /* K and V of the heads worked on together: well within L2 */
    MAX_GROUPS = MLA_MAX_HEADS / GROUP_HEADS,
    LIST_WORDS = 1000, /* of a kernel's parameters */
    ALIGN = 256,
};

int64_t round_up(int64_t n, int64_t to)
{
    return (n + to - 1) / to * to;
}

/* ---- how the work is cut ----------------------------------------------------------------------
 */

struct cut {
    int64_t tokens; /* of all sequences, padded */
    int32_t tiles;
    int32_t states; /* tiles whose softmax can rest at once */
    int32_t group;  /* heads of a launch; the last may have fewer */
    int64_t piece;  /* tokens of a piece, at most */
};

int32_t q_start(const mla_seqs &s, int32_t i)
{
    return s.q_starts ? s.q_starts[i] : i * s.max_q_len;
}

int32_t q_len(const mla_seqs &s, int32_t i)
{
    return s.q_lens ? s.q_lens[i] : s.max_q_len;
}

int32_t tiles_of(int32_t query_rows)
{
    return (query_rows + PREFILL_ROWS - 1) / PREFILL_ROWS;
}

/* A piece ends in at most one sequence and may begin in another: the tiles of any two sequences. */
int32_t most_states(int64_t query_rows)
{
    return (int32_t)(query_rows / PREFILL_ROWS) + 2;
}

int64_t lists_bytes(int64_t tiles, int64_t piece)
{
    return round_up(MAX_GROUPS * sizeof(int32_t) + tiles * sizeof(prefill_tile) +
                        piece / PREFILL_BLOCK * sizeof(prefill_block),
                    ALIGN);
}

int64_t state_bytes(int64_t tiles, int32_t group, int32_t v_dim)
{
    return tiles * group * prefill_state_floats(v_dim) * sizeof(float);
}

/* Of the piece's rows, `heads` heads at a time. */
int64_t piece_bytes(const mla_prefill_args &a, int64_t tokens, int32_t heads)
{
    const int64_t expanded = (int64_t)heads * (a.nope_dim + a.v_dim);

    return round_up(tokens * a.cache.latent_dim * 2, ALIGN) +
           round_up(tokens * a.cache.rope_dim * 2, ALIGN) + round_up(tokens * expanded * 2, ALIGN);
}

/* MLA_INVALID when a length is out of its range or the workspace is too small. */
int make_cut(const mla_prefill_args &a, cut &c)
{
    const int32_t least = std::min<int32_t>(a.heads, GROUP_HEADS);
    const int64_t space = (int64_t)a.workspace_bytes;

    int64_t query_rows = 0;

    c = {};
    for (int32_t i = 0; i < a.seqs.n_seqs; i++) {
        const int32_t rows = q_len(a.seqs, i);
        if (rows == 0)
            continue;
        if (rows < 0 || a.seqs.kv_lens[i] < rows || q_start(a.seqs, i) < 0 ||
            q_start(a.seqs, i) > a.seqs.query_rows - rows)
            return MLA_INVALID;
        c.tokens += round_up(a.seqs.kv_lens[i], PREFILL_BLOCK);
        c.tiles += tiles_of(rows);
        query_rows += rows;
    }
    c.states = std::min(c.tiles, most_states(query_rows));
    c.piece = c.tokens;
    c.group = a.heads;
    if (c.tiles == 0)
        return MLA_OK;
    for (int32_t groups = 1; c.group > least; groups++) {
        c.group = (a.heads + groups - 1) / groups;
        if (lists_bytes(c.tiles, c.tokens) + piece_bytes(a, c.tokens, c.group) <= space)
            return MLA_OK;
    }
    if (lists_bytes(c.tiles, c.tokens) + piece_bytes(a, c.tokens, c.group) <= space)
        return MLA_OK;
    const int64_t fixed =
        lists_bytes(c.tiles, 0) + state_bytes(c.states, c.group, a.v_dim) + 4 * ALIGN;
    const int64_t block = piece_bytes(a, PREFILL_BLOCK, c.group) + sizeof(prefill_block);
    c.piece = (space - fixed) / block * PREFILL_BLOCK;
    return c.piece < PREFILL_BLOCK ? MLA_INVALID : MLA_OK;
}

/* A piece: its blocks, and the tiles that see some of them. */
struct piece {
    std::vector<prefill_tile> tiles;
    std::vector<prefill_block> blocks;
};

/* Where the next piece starts. */
struct place {
    int32_t seq;
    int32_t position; /* a multiple of PREFILL_BLOCK */
    int32_t states;   /* of the cut: sequences cut by a piece's end have theirs */
    int32_t at_top;   /* in turn at the bottom and at the top of these */
};

/* Adds what the tiles of sequence i see of its tokens first .. end - 1, which stand at kv_row. */
void add_tiles(piece &out, const mla_seqs &s, const place &at, int32_t kv_row, int32_t end)
{
    const int32_t rows = q_len(s, at.seq), context = s.kv_lens[at.seq] - rows;
    const int32_t first_state = at.at_top ? at.states - tiles_of(rows) : 0;

    for (int32_t r = 0; r < rows; r += PREFILL_ROWS) {
        prefill_tile t = {};
        t.row = q_start(s, at.seq) + r;
        t.rows = std::min<int32_t>(rows - r, PREFILL_ROWS);
        t.position = context + r;
        t.kv_row = kv_row;
        t.kv_first = at.position;
        t.kv_tokens = std::min(end, t.position + t.rows) - at.position;
        t.state = first_state + r / PREFILL_ROWS;
        t.last = t.position + t.rows <= end;
        if (t.kv_tokens > 0)
            out.tiles.push_back(t);
    }
}

/* Fills the next piece, of at most `tokens`; 0 when nothing is left. */
int next_piece(piece &out, const mla_seqs &s, place &at, int64_t tokens)
{
    out.tiles.clear();
    out.blocks.clear();
    while (at.seq < s.n_seqs && (int64_t)out.blocks.size() * PREFILL_BLOCK < tokens) {
        const int32_t kv_len = q_len(s, at.seq) ? s.kv_lens[at.seq] : 0;
        const int32_t table = s.table_starts ? s.table_starts[at.seq] : at.seq * s.table_stride;
        const int32_t kv_row = (int32_t)out.blocks.size() * PREFILL_BLOCK;
        const int32_t end = (int32_t)std::min<int64_t>(kv_len, at.position + tokens - kv_row);

        if (at.position == 0 && end < kv_len)
            at.at_top ^= 1;
        add_tiles(out, s, at, kv_row, end);
        for (; at.position < end; at.position += PREFILL_BLOCK)
            out.blocks.push_back(
                {at.position, std::min<int32_t>(end - at.position, PREFILL_BLOCK), table, 0});
        if (end == kv_len) {
            at.position = 0;
            at.seq++;
        }
    }
    std::stable_sort(
        out.tiles.begin(), out.tiles.end(),
        [](const prefill_tile &a, const prefill_tile &b) { return a.kv_tokens > b.kv_tokens; });
    return !out.tiles.empty();
}

/* ---- lists on the device ----------------------------------------------------------------------
 */

struct words {
    int32_t n;
    int32_t word[LIST_WORDS];
};

__global__ void store_words(int32_t *to, const __grid_constant__ words from)
{
    launch_wait();
    launch_next();
    for (int i = threadIdx.x; i < from.n; i += blockDim.x)
        to[i] = from.word[i];
}

/* Counters, all 0, tiles and blocks of a piece. */
int upload_lists(int32_t *to, const piece &piece, cudaStream_t stream)
{
    const int32_t *tiles = (const int32_t *)piece.tiles.data();
    const int32_t *blocks = (const int32_t *)piece.blocks.data();
    std::vector<int32_t> list(MAX_GROUPS);
    words chunk;

    list.insert(list.end(), tiles, tiles + piece.tiles.size() * sizeof(prefill_tile) / 4);
    list.insert(list.end(), blocks, blocks + piece.blocks.size() * sizeof(prefill_block) / 4);
    for (size_t i = 0; i < list.size(); i += LIST_WORDS) {
        chunk.n = (int32_t)std::min<size_t>(list.size() - i, LIST_WORDS);
        std::copy_n(&list[i], chunk.n, chunk.word);
        if (launch_early(store_words, 1, 256, 0, stream, to + i, chunk) != cudaSuccess)
            return MLA_CUDA;
    }
    return MLA_OK;
}

/* ---- the launches -----------------------------------------------------------------------------
 */

/* Where things stand in the workspace. */
struct places {
    int32_t *lists;
    char *latent, *rope, *kv;
    float *state;
};

places place_all(const mla_prefill_args &a, const cut &c)
{
    char *at = (char *)a.workspace;
    places w;

    w.lists = (int32_t *)at;
    w.latent = at + lists_bytes(c.tiles, c.piece);
    w.rope = w.latent + round_up(c.piece * a.cache.latent_dim * 2, ALIGN);
    w.kv = w.rope + round_up(c.piece * a.cache.rope_dim * 2, ALIGN);
    w.state = (float *)(w.latent + piece_bytes(a, c.piece, c.group));
    return w;
}

int expand(const mla_prefill_args &a, const places &w, int32_t first_head, int32_t heads,
           int32_t rows, mla_stream stream)
{
    const int32_t per_head = a.nope_dim + a.v_dim;
    const int32_t k = a.cache.latent_dim;
    const char *weight = (const char *)a.kv_b + (int64_t)first_head * per_head * k * 2;
    const struct mla_device *device = mla_device();
    gemm_linear_args g = {};

    if (device && device->hopper) {
        int status =
            prefill_expand(w.kv, w.latent, weight, rows, heads * per_head, k, device->sms, stream);
        if (status != MLA_UNSUPPORTED)
            return status;
    }
    g.x = w.latent;
    g.x_stride = g.k = k;
    g.m = rows;
    g.n_parts = 1;
    g.batch_invariant = 1;
    g.parts[0].weight = weight;
    g.parts[0].out = w.kv;
    g.parts[0].out_stride = g.parts[0].n = heads * per_head;
    return gemm_linear(&g, stream) == GEMM_OK ? MLA_OK : MLA_CUDA;
}

int map_2d(CUtensorMap *map, const void *data, uint64_t columns, uint64_t rows, uint32_t box_rows)
{
    const uint64_t sizes[] = {columns, rows}, strides[] = {columns * 2};
    const uint32_t box[] = {64, box_rows};

    return mla_tensor_map(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, data, sizes, strides, box);
}

int attend(const mla_prefill_args &a, const cut &c, const places &w, const piece &piece,
           int32_t first_head, int32_t heads, mla_stream stream)
{
    const int64_t rows = (int64_t)piece.blocks.size() * PREFILL_BLOCK;
    const int32_t key = a.nope_dim + a.cache.rope_dim, per_head = a.nope_dim + a.v_dim;
    const struct mla_device *device = mla_device();
    const bool is_128 = a.nope_dim == 128 && a.v_dim == 128,
               is_256 = a.nope_dim == 192 && a.v_dim == 256;
    const bool fast = device && device->hopper && a.cache.rope_dim == 64 && (is_128 || is_256);
    prefill_attend p = {};

    p.tiles = (prefill_tile *)(w.lists + MAX_GROUPS);
    p.n_tiles = (int32_t)piece.tiles.size();
    p.heads = a.heads;
    p.first_head = first_head;
    p.group = heads;
    p.section = prefill_section(p.n_tiles, heads, rows * per_head * 2, device ? device->sms : 1);
    p.scale_log2 = a.softmax_scale * 1.44269504089f;
    p.counter = w.lists + first_head / c.group;
    p.out = a.out;
    p.lse = a.lse;
    p.state = w.state;
    if (fast) {
        const uint32_t block = is_128 ? PREFILL_KV_128 : PREFILL_KV_256;
        if (map_2d(&p.q_map, a.q, (uint64_t)a.heads * key, a.seqs.query_rows, PREFILL_ROWS) != 0 ||
            map_2d(&p.kv_map, w.kv, (uint64_t)heads * per_head, rows, block) != 0 ||
            map_2d(&p.rope_map, w.rope, a.cache.rope_dim, rows, block) != 0)
            return MLA_CUDA;
        return is_128 ? prefill_attend_128(&p, device->sms, stream)
                      : prefill_attend_256(&p, device->sms, stream);
    }
    p.q = a.q;
    p.kv = w.kv;
    p.rope = w.rope;
    p.nope_dim = a.nope_dim;
    p.rope_dim = a.cache.rope_dim;
    p.v_dim = a.v_dim;
    return prefill_attend_plain(&p, stream);
}

int run_group(const mla_prefill_args &a, const cut &c, int32_t first_head, mla_stream stream)
{
    const int32_t heads = std::min(c.group, a.heads - first_head);
    const places w = place_all(a, c);
    place at = {0, 0, c.states, 0};
    piece piece;

    while (next_piece(piece, a.seqs, at, c.piece)) {
        const int32_t blocks = (int32_t)piece.blocks.size();
        int status = MLA_OK;
        if (first_head == 0 || c.piece < c.tokens) {
            const prefill_tile *tiles = (const prefill_tile *)(w.lists + MAX_GROUPS);
            status = upload_lists(w.lists, piece, stream);
            if (status == MLA_OK)
                status = prefill_gather(&a.cache, a.seqs.block_tables,
                                        (const prefill_block *)(tiles + piece.tiles.size()), blocks,
                                        w.latent, w.rope, stream);
        }
        if (status == MLA_OK)
            status = expand(a, w, first_head, heads, blocks * PREFILL_BLOCK, stream);
        if (status == MLA_OK)
            status = attend(a, c, w, piece, first_head, heads, stream);
        if (status != MLA_OK)
            return status;
    }
    return MLA_OK;
}

bool sizes_are_right(const mla_prefill_args &a)
{
    const int32_t latent = a.cache.latent_dim, rope = a.cache.rope_dim;

    return a.heads >= 1 && a.heads <= MLA_MAX_HEADS && a.nope_dim >= 0 && a.nope_dim <= 256 &&
           rope >= 0 && rope <= MLA_MAX_ROPE && a.v_dim >= 1 && a.v_dim <= 256 &&
           (a.nope_dim + a.v_dim) % 8 == 0 && latent > 0 && rope % 8 == 0 &&
           latent % (a.cache.format == MLA_KV_FP8 ? 128 : 8) == 0;
}

} // namespace

int32_t prefill_section(int32_t tiles, int32_t heads, int64_t head_bytes, int sms)
{
    if ((int64_t)tiles * heads <= 4 * sms)
        return heads;
    const int64_t most = SECTION_BYTES / head_bytes + 1, sections = (heads + most - 1) / most;
    return (int32_t)((heads + sections - 1) / sections);
}

int mla_prefill(const struct mla_prefill_args *args, mla_stream stream)
{
    cut c;

    if (!sizes_are_right(*args) || args->seqs.n_seqs < 0 || make_cut(*args, c) != MLA_OK)
        return MLA_INVALID;
    if (c.tiles == 0)
        return MLA_OK;
    for (int32_t h = 0; h < args->heads; h += c.group) {
        int status = run_group(*args, c, h, stream);
        if (status != MLA_OK)
            return status;
    }
    return MLA_OK;
}

size_t mla_prefill_workspace(const struct mla_prefill_args *shape, int32_t n_seqs,
                             int32_t query_rows, int32_t kv_tokens)
{
    const int32_t group = std::min<int32_t>(shape->heads, GROUP_HEADS);
    const int64_t tiles = query_rows / PREFILL_ROWS + n_seqs;
    const int64_t tokens = round_up(std::max(kv_tokens, 1), PREFILL_BLOCK);

    return lists_bytes(tiles, tokens) + piece_bytes(*shape, tokens, group) +
           state_bytes(std::min<int64_t>(tiles, most_states(query_rows)), group, shape->v_dim) +
           8 * ALIGN;
}
