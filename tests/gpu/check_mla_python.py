"""kernels/python/mla.py against a float32 reference in torch, on a GPU.

    check_mla_python.py [libmla.so]

Unused cache rows are NaN and unused block-table entries garbage. Tolerances are those of
FlashMLA's own test: out within 8e-4 absolute or 2.01/128 relative and 5e-6 of cosine distance, lse
within 1e-6 absolute or 8.01/65536 relative. (The file's name doesn't begin with `test`, so that
pytest does not collect it where there is no GPU.)
"""

import itertools
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "kernels" / "python"))
import mla
from mla import flash_mla_with_kvcache, get_mla_metadata

DEVICE = torch.device("cuda", 0)
GARBAGE = 0x7FFF0000  # in entries of block tables that no token needs


@dataclass
class Case:
    q: torch.Tensor  # (b, s_q, h_q, width)
    cache: torch.Tensor  # (blocks, 64, 1, row)
    rows: torch.Tensor  # (blocks * 64, width) float32: what the cache's bytes stand for
    table: torch.Tensor  # (b, max_blocks)
    lens: torch.Tensor  # (b,)
    latent: int
    fp8: bool

    def run(self, **options) -> tuple[torch.Tensor, torch.Tensor]:
        metadata, splits = get_mla_metadata(
            self.lens, self.q.shape[1] * self.q.shape[2], 1, is_fp8_kvcache=self.fp8
        )
        options = {"softmax_scale": 192**-0.5, "causal": True, **options}
        return flash_mla_with_kvcache(
            self.q,
            self.cache,
            self.table,
            self.lens,
            self.latent,
            metadata,
            splits,
            is_fp8_kvcache=self.fp8,
            **options,
        )


def random_rows(n: int, latent: int, rope: int, fp8: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """n cache rows, and the values they stand for."""
    values = torch.randn(n, latent + rope, device=DEVICE) * 0.1
    if not fp8:
        stored = values.bfloat16()
        return stored, stored.float()
    blocks = latent // 128
    e4m3 = (values[:, :latent] * 400).to(torch.float8_e4m3fn)
    scales = torch.exp2(-torch.randint(9, 14, (n, blocks), device=DEVICE).float())
    rotated = values[:, latent:].bfloat16()
    stored = torch.cat([part.view(torch.uint8) for part in (e4m3, scales, rotated)], dim=1)
    latents = e4m3.float().view(n, blocks, 128) * scales.unsqueeze(2)
    return stored, torch.cat([latents.view(n, latent), rotated.float()], dim=1)


def make(b, s_q, h_q, kv_len, fp8=False, varied=False, latent=512, rope=64) -> Case:
    """Random data of all lengths `kv_len`, or `varied` up to it, some 0; blocks in random order."""
    lens = torch.full((b,), kv_len, dtype=torch.int32)
    if varied:
        lens = torch.randint(0, kv_len + 1, (b,), dtype=torch.int32)
        lens[0], lens[b // 2] = kv_len, 0
    width, max_blocks = latent + rope, (kv_len + 63) // 64 + 2
    n_blocks = b * max_blocks
    table = torch.randperm(n_blocks, dtype=torch.int32).view(b, max_blocks).to(DEVICE)
    stored, values = random_rows(n_blocks * 64, latent, rope, fp8)
    case = Case(
        (torch.randn(b, s_q, h_q, width, device=DEVICE) * 6).bfloat16(),
        stored.view(n_blocks, 64, 1, -1),
        values,
        table,
        lens.to(DEVICE),
        latent,
        fp8,
    )
    unused = unused_slots(case)
    stored[unused] = 255 if fp8 else float("nan")
    past = torch.arange(max_blocks, device=DEVICE) >= (case.lens.unsqueeze(1) + 63) // 64
    table[past] = GARBAGE
    return case


def slots(case: Case, max_len: int) -> torch.Tensor:
    """(b, max_len) where a sequence's positions stand in the cache."""
    t = torch.arange(max_len, device=DEVICE)
    return case.table[:, t // 64].long() * 64 + t % 64


def unused_slots(case: Case) -> torch.Tensor:
    """The rows of the cache that no sequence has reached."""
    max_len = case.table.shape[1] * 64
    reached = torch.arange(max_len, device=DEVICE) < case.lens.unsqueeze(1)
    unused = torch.ones(len(case.rows), dtype=torch.bool, device=DEVICE)
    unused[slots(case, max_len)[reached]] = False
    return unused


def reference(case: Case, scale=192**-0.5, causal=True) -> tuple[torch.Tensor, torch.Tensor]:
    b, s_q = case.q.shape[:2]
    max_len = max(int(case.lens.max()), 1)
    t = torch.arange(max_len, device=DEVICE)
    inside = t < case.lens.unsqueeze(1)  # (b, max_len)
    k = case.rows[torch.where(inside, slots(case, max_len), 0)]
    k = torch.where(inside.unsqueeze(2), k, 0)  # (b, max_len, width)
    scores = torch.einsum("bqhd,btd->bqht", case.q.float(), k) * scale
    last = case.lens.view(b, 1, 1) - 1  # position of the last query
    if causal:
        last = last - (s_q - 1 - torch.arange(s_q, device=DEVICE).view(1, s_q, 1))
    seen = (t <= last).view(b, -1, 1, max_len)  # (b, s_q or 1, 1, max_len)
    scores = scores.masked_fill(~seen, float("-inf"))
    lse = scores.logsumexp(3)  # (b, s_q, h_q)
    blind = lse == float("-inf")
    weights = torch.exp(scores - torch.where(blind, 0, lse).unsqueeze(3))
    out = torch.einsum("bqht,btd->bqhd", weights, k[:, :, : case.latent])
    return out, torch.where(blind, float("inf"), lse).transpose(1, 2)


def compare(case: Case, got: tuple[torch.Tensor, torch.Tensor], **options) -> None:
    out, lse = got
    want, want_lse = reference(case, **options)
    assert out.dtype == torch.bfloat16 and out.shape == want.shape, (out.dtype, out.shape)
    assert lse.dtype == torch.float32 and lse.shape == want_lse.shape, (lse.dtype, lse.shape)
    error = (out.float() - want).abs()
    bad = ~((error <= 8e-4) | (error <= 2.01 / 128 * want.abs()))
    assert not bad.any(), f"{int(bad.sum())} of {bad.numel()} values of out, {bad.nonzero()[0]}"
    x, y = out.double(), want.double()
    cosine = 1 - 2 * (x * y).sum() / ((x * x).sum() + (y * y).sum()).clamp(min=1e-30)
    assert cosine < 5e-6 or not want.any(), f"cosine distance {float(cosine)}"
    error = (lse - want_lse).abs()
    good = (error <= 1e-6) | (error <= 8.01 / 65536 * want_lse.abs()) | (lse == want_lse)
    assert good.all(), f"{int((~good).sum())} values of lse, {(~good).nonzero()[0]}"


# ---- what must hold ------------------------------------------------------------------------------


def agrees_with_the_reference(b, kv_len, s_q, h_q, fp8, varied, causal):
    case = make(b, s_q, h_q, kv_len, fp8, varied)
    compare(case, case.run(causal=causal), causal=causal)


def other_sizes_work(rope, fp8):
    case = make(3, 2, 16, 300, fp8, varied=True, latent=256, rope=rope)
    compare(case, case.run())


def options_mean_what_flash_mla_means():
    case = make(4, 2, 16, 500)
    compare(case, case.run(softmax_scale=None), scale=576**-0.5)
    out, lse = flash_mla_with_kvcache(case.q, case.cache, case.table, case.lens, 512, None, None)
    compare(case, (out, lse), scale=576**-0.5, causal=False)
    assert get_mla_metadata() == (None, None)
    empty = torch.zeros(0, dtype=torch.int32, device=DEVICE)
    out, lse = flash_mla_with_kvcache(case.q[:0], case.cache, case.table[:0], empty, 512)
    assert out.shape == (0, 2, 16, 512) and lse.shape == (0, 16, 2)


def batch_invariant_bits_do_not_depend_on_the_batch(h_q, fp8):
    case = make(12, 1, h_q, 2000, fp8, varied=True)
    out, lse = case.run(batch_invariant=True)
    compare(case, (out, lse))
    for i in range(3):
        q, table, lens = (tensor[i : i + 1] for tensor in (case.q, case.table, case.lens))
        one = Case(q, case.cache, case.rows, table, lens, 512, fp8)
        alone, alone_lse = one.run(batch_invariant=True)
        assert torch.equal(alone[0], out[i]) and torch.equal(alone_lse[0], lse[i])


def strided_tensors_are_read_where_they_are(fp8):
    case = make(5, 2, 16, 200, fp8, varied=True)
    layers = torch.stack(
        [case.cache.view(torch.uint8), torch.zeros_like(case.cache.view(torch.uint8))]
    )
    by_block = layers.transpose(0, 1).contiguous()  # (blocks, layers, 64, 1, bytes)
    case.cache = by_block[:, 0].view(case.cache.dtype)
    case.table = torch.cat([case.table, case.table + 1], dim=1)[:, : case.table.shape[1]]
    case.q = case.q.transpose(1, 2).contiguous().transpose(1, 2)
    assert not (case.cache.is_contiguous() or case.table.is_contiguous() or case.q.is_contiguous())
    compare(case, case.run())
    if fp8:
        for dtype in (torch.int8, torch.float8_e4m3fn):
            case.cache = by_block[:, 0].view(dtype)
            compare(case, case.run())


def streams_do_not_disturb_each_other():
    cases = [make(4, 1, 16, 3000, varied=True), make(2, 2, 64, 5000, varied=True)]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    results = [[], []]
    torch.cuda.synchronize()
    for _ in range(20):
        for case, stream, list_ in zip(cases, streams, results):
            with torch.cuda.stream(stream):
                list_.append(case.run())
    torch.cuda.synchronize()
    for case, list_ in zip(cases, results):
        compare(case, list_[0])
        for out, lse in list_:
            assert torch.equal(out, list_[0][0]) and torch.equal(lse, list_[0][1])


def graphs_follow_their_inputs(s_q, h_q, fp8):
    """Two layers in one graph; lengths, tables, queries and the cache change between replays."""
    cases = [make(6, s_q, h_q, 1500, fp8) for _ in range(2)]
    compare(cases[0], cases[0].run())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [case.run() for case in cases]
    for new_len in (1500, 700, 64):
        for case, (out, lse) in zip(cases, results):
            new = make(6, s_q, h_q, 1500, fp8)
            new.lens[:] = torch.tensor([new_len, 0, 1, 65, 1499, new_len // 2])
            for name in ("q", "cache", "rows", "table", "lens"):
                getattr(case, name).copy_(getattr(new, name))
            out.fill_(float("nan"))
            lse.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        for case, result in zip(cases, results):
            compare(case, result)


def mistakes_are_named():
    case = make(2, 2, 16, 100)
    fp8 = make(2, 2, 16, 100, fp8=True)
    good = {
        "q": case.q,
        "k_cache": case.cache,
        "block_table": case.table,
        "cache_seqlens": case.lens,
        "head_dim_v": 512,
    }
    wrong = [
        ({"q": case.q.half()}, TypeError, "q must be torch.bfloat16"),
        ({"q": case.q.cpu()}, ValueError, "q is on cpu"),
        ({"q": case.q[0]}, ValueError, "q must have shape"),
        ({"q": None}, TypeError, "q must be a torch tensor"),
        ({"q": case.q.repeat(1, 1, 9, 1)}, ValueError, "144 heads"),
        ({"head_dim_v": 577}, ValueError, "head_dim_v 577"),
        ({"k_cache": case.cache.float()}, TypeError, "k_cache must be torch.bfloat16"),
        ({"k_cache": fp8.cache}, ValueError, "k_cache must have shape"),
        ({"k_cache": fp8.cache.short(), "is_fp8_kvcache": True}, TypeError, "is_fp8_kvcache"),
        ({"is_fp8_kvcache": True}, ValueError, "(num_blocks, 64, 1, 656)"),
        ({"k_cache": case.cache[:, :32]}, ValueError, "k_cache must have shape"),
        ({"k_cache": case.cache[:1].expand(9, -1, -1, -1)}, ValueError, "not overlap"),
        (
            {"k_cache": case.cache.transpose(1, 3).contiguous().transpose(1, 3)},
            ValueError,
            "strides",
        ),
        ({"k_cache": case.cache.cpu()}, ValueError, "k_cache is on cpu"),
        ({"block_table": case.table.long()}, TypeError, "block_table must be torch.int32"),
        ({"block_table": case.table[:1]}, ValueError, "block_table must have shape"),
        ({"block_table": case.table.t().contiguous().t()}, ValueError, "block_table's strides"),
        ({"block_table": case.table[:1].expand(2, -1)}, ValueError, "block_table's strides"),
        ({"cache_seqlens": case.lens.long()}, TypeError, "cache_seqlens must be torch.int32"),
        ({"cache_seqlens": case.lens.cpu()}, ValueError, "cache_seqlens is on cpu"),
        ({"cache_seqlens": case.lens[:1]}, ValueError, "cache_seqlens must have shape"),
        ({"cache_seqlens": case.lens.repeat(2)[::2]}, ValueError, "contiguous"),
        ({"softmax_scale": -1.0}, ValueError, "softmax_scale"),
        ({"indices": case.lens}, NotImplementedError, "indices"),
        ({"attn_sink": case.lens}, NotImplementedError, "attn_sink"),
        ({"attn_sink": None, "topk_length": None}, None, None),
        ({"causl": True}, TypeError, "causl"),
    ]
    for change, kind, words in wrong:
        try:
            flash_mla_with_kvcache(**{**good, **change})
            raised = None
        except Exception as error:  # noqa: BLE001
            raised = error
        if kind is None:
            assert raised is None, f"{list(change)}: {raised!r}"
        else:
            assert type(raised) is kind and words in str(raised), f"{list(change)}: {raised!r}"


# ---- running them --------------------------------------------------------------------------------

passed = failed = 0


def check(statement, *arguments) -> None:
    global passed, failed
    torch.manual_seed(passed + failed)
    try:
        statement(*arguments)
        torch.cuda.synchronize()
        passed += 1
    except AssertionError as error:
        failed += 1
        print(f"FAIL {statement.__name__}{arguments}: {error}")
    except Exception:  # noqa: BLE001
        failed += 1
        print(f"FAIL {statement.__name__}{arguments}:\n{traceback.format_exc(limit=-3)}")


def main() -> int:
    if len(sys.argv) > 1:
        mla.load(sys.argv[1])
    sizes = [(1, 20), (6, 140), (3, 4096), (40, 1000)]
    both = (False, True)
    for (b, kv_len), s_q, h_q, fp8, varied, causal in itertools.product(
        sizes, (1, 2), (9, 16, 64, 128), both, both, both
    ):
        check(agrees_with_the_reference, b, kv_len, s_q, h_q, fp8, varied, causal)
    for kv_len, h_q, fp8 in itertools.product((0, 1, 63, 64, 65, 50000), (16, 128), both):
        check(agrees_with_the_reference, 1, kv_len, 1, h_q, fp8, False, True)
    for rope, fp8 in itertools.product((32, 64), both):
        check(other_sizes_work, rope, fp8)
    check(options_mean_what_flash_mla_means)
    for h_q, fp8 in itertools.product((16, 64, 128), both):
        check(batch_invariant_bits_do_not_depend_on_the_batch, h_q, fp8)
    for fp8 in both:
        check(strided_tensors_are_read_where_they_are, fp8)
    check(streams_do_not_disturb_each_other)
    for s_q, h_q, fp8 in itertools.product((1, 2), (16, 64, 128), both):
        check(graphs_follow_their_inputs, s_q, h_q, fp8)
    check(mistakes_are_named)
    print(f"mla_python: {passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
