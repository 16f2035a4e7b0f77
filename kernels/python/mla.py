"""libmla from Python: FlashMLA's decode functions for torch tensors, by ctypes. Needs torch and
libmla.so (`make libmla`), nothing else.

A program written for FlashMLA changes one import:

    from mla import get_mla_metadata, flash_mla_with_kvcache

    b, s_q, h_q, max_len = 8, 1, 16, 4096
    n_blocks = b * max_len // 64
    q = torch.randn(b, s_q, h_q, 576, dtype=torch.bfloat16, device="cuda")
    k_cache = torch.randn(n_blocks, 64, 1, 576, dtype=torch.bfloat16, device="cuda")
    block_table = torch.arange(n_blocks, dtype=torch.int32, device="cuda").view(b, -1)
    cache_seqlens = torch.full((b,), 1000, dtype=torch.int32, device="cuda")

    metadata, num_splits = get_mla_metadata(cache_seqlens, s_q * h_q, 1)
    out, lse = flash_mla_with_kvcache(
        q, k_cache, block_table, cache_seqlens, 512, metadata, num_splits, causal=True
    )

Calls queue their work on torch's current stream and wait for nothing. torch.cuda.graph captures
them, and between replays q, the cache, block_table and cache_seqlens may change in place.

A stream has one workspace, which lives as long as the process; a graph keeps that of the stream it
was captured on. So graphs that are replayed at the same time must be captured on different streams
(torch.cuda.graph captures all on one stream unless it is given another), and a stream that a graph
was captured on must not make calls of its own beside the graph's replay.
Blocks of a call wait for each other, so let one call run at a time on a GPU: two at once might each
have a part of the processors, and wait until a fault ends them.

The library is looked for beside this file, in the folder `lib` beside this file's (as in the
packed archive), and in the folder `build` of the source tree; load() takes any other path.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_float, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path

import torch

__all__ = ["flash_mla_with_kvcache", "get_mla_metadata", "load"]

PAGE_TOKENS = 64
MAX_HEADS = 128
FP8_DTYPES = (torch.uint8, torch.int8, torch.float8_e4m3fn)
SPARSE_ARGUMENTS = {  # of FlashMLA's sparse attention, beside `indices`
    "attn_sink",
    "extra_k_cache",
    "extra_indices_in_kvcache",
    "topk_length",
    "extra_topk_length",
}


# ---- kernels/mla.h ---------------------------------------------------------------------------


class _Cache(ctypes.Structure):
    _fields_ = [
        ("pages", c_void_p),
        ("page_stride", c_int64),
        ("n_pages", c_int32),
        ("latent_dim", c_int32),
        ("rope_dim", c_int32),
        ("format", c_int32),
    ]


class _Seqs(ctypes.Structure):
    _fields_ = [
        ("n_seqs", c_int32),
        ("query_rows", c_int32),
        ("max_q_len", c_int32),
        ("q_starts", c_void_p),
        ("q_lens", c_void_p),
        ("kv_lens", c_void_p),
        ("block_tables", c_void_p),
        ("table_starts", c_void_p),
        ("table_stride", c_int32),
    ]


class _DecodeArgs(ctypes.Structure):
    _fields_ = [
        ("cache", _Cache),
        ("seqs", _Seqs),
        ("q", c_void_p),
        ("out", c_void_p),
        ("lse", c_void_p),
        ("heads", c_int32),
        ("softmax_scale", c_float),
        ("causal", c_int32),
        ("batch_invariant", c_int32),
        ("settled", c_int32),
        ("next_late", c_int32),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
    ]


_library: ctypes.CDLL | None = None


def load(path: str | Path | None = None) -> ctypes.CDLL:
    """Loads libmla.so, from `path` if one is given. Without it, the first call of
    flash_mla_with_kvcache does."""
    global _library
    if path is None:
        here = Path(__file__).resolve().parent
        folders = (here, here.parent / "lib", here.parents[1] / "build")
        found = [folder / "libmla.so" for folder in folders if (folder / "libmla.so").exists()]
        if not found:
            places = ", ".join(str(folder) for folder in folders)
            raise OSError(f"no libmla.so in {places}: run `make libmla`, or name it to mla.load()")
        path = found[0]
    library = ctypes.CDLL(str(path))
    library.mla_decode.argtypes = [ctypes.POINTER(_DecodeArgs), c_void_p]
    library.mla_decode.restype = ctypes.c_int
    library.mla_decode_workspace.argtypes = [c_int32] * 4
    library.mla_decode_workspace.restype = c_size_t
    library.mla_status_text.argtypes = [ctypes.c_int]
    library.mla_status_text.restype = ctypes.c_char_p
    _library = library
    return library


# ---- the workspace ---------------------------------------------------------------------------

# By (device, stream) the largest so far, last, and the smaller ones, which graphs may still use.
# Each is at least twice as large as the one before.
_workspaces: dict[tuple[int, int], list[torch.Tensor]] = {}


@contextmanager
def _outside_captures(device: torch.device) -> Iterator[None]:
    """What is queued inside runs at once, on a stream of its own, and has run at the end, also
    while this thread captures a graph; what is allocated inside does not belong to that graph."""
    exchange_mode = ctypes.CDLL("libcuda.so.1").cuThreadExchangeStreamCaptureMode
    mode = ctypes.c_int(2)  # CU_STREAM_CAPTURE_MODE_RELAXED: this thread may allocate and wait
    if exchange_mode(ctypes.byref(mode)):
        raise RuntimeError("the CUDA driver refused to change this thread's capture mode")
    try:
        own = torch.cuda.Stream(device)
        if own == torch.cuda.current_stream(device):  # torch hands out a few streams in turn
            own = torch.cuda.Stream(device)
        with torch.cuda.stream(own):
            yield
            own.synchronize()
    finally:
        exchange_mode(ctypes.byref(mode))


def _workspace(device: torch.device, stream: int, size: int) -> torch.Tensor:
    held = _workspaces.setdefault((device.index, stream), [])
    if not held or held[-1].numel() < size:
        grown = max(size, 2 * held[-1].numel() if held else 0)
        with _outside_captures(device):
            held.append(torch.zeros(grown, dtype=torch.uint8, device=device))
    return held[-1]


# ---- checks ----------------------------------------------------------------------------------


def _tensor(name: str, tensor: object, shape: tuple[int | str, ...], device: object) -> None:
    """A tensor of `shape` on `device`. A word in the shape names a size that is at least 1."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch tensor, not {type(tensor).__name__}")
    fits = len(tensor.shape) == len(shape) and all(
        size == wanted or (size >= 1 and isinstance(wanted, str))
        for size, wanted in zip(tensor.shape, shape)
    )
    if not fits:
        wanted = ", ".join(str(size) for size in shape)
        raise ValueError(f"{name} must have shape ({wanted}), not {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, not on q's device {device}")


def _dtype(
    name: str, tensor: torch.Tensor, dtypes: tuple[torch.dtype, ...], hint: str = ""
) -> None:
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{name} must be {wanted}, not {tensor.dtype}{hint}")


def _cache(k_cache: torch.Tensor, latent: int, rope: int, fp8: bool, device: object) -> _Cache:
    """The cache's pages as libmla sees them."""
    if fp8 and latent % 128 != 0:
        raise ValueError(f"an FP8 cache has head_dim_v in blocks of 128; {latent} is no multiple")
    row = latent + latent // 128 * 4 + rope * 2 if fp8 else latent + rope  # elements
    _tensor("k_cache", k_cache, ("num_blocks", PAGE_TOKENS, 1, row), device)
    if fp8:
        _dtype("k_cache", k_cache, FP8_DTYPES, " (is_fp8_kvcache is True)")
    else:
        _dtype("k_cache", k_cache, (torch.bfloat16,), " (is_fp8_kvcache is False)")
    size = k_cache.element_size()
    if k_cache.stride(3) != 1 or k_cache.stride(1) != row:
        raise ValueError(
            f"the {PAGE_TOKENS} rows of a block of k_cache must stand together: strides "
            f"(any, {row}, any, 1), not {k_cache.stride()}"
        )
    page_stride = k_cache.stride(0) * size if k_cache.shape[0] > 1 else PAGE_TOKENS * row * size
    if page_stride < PAGE_TOKENS * row * size or page_stride % 16 != 0:
        raise ValueError(
            f"blocks of k_cache must be a multiple of 16 bytes apart and not overlap, but are "
            f"{page_stride} bytes apart"
        )
    if k_cache.data_ptr() % 128 != 0:
        raise ValueError("k_cache must begin at a multiple of 128 bytes")
    return _Cache(k_cache.data_ptr(), page_stride, k_cache.shape[0], latent, rope, int(fp8))


def _seqs(q: torch.Tensor, block_table: torch.Tensor, cache_seqlens: torch.Tensor) -> _Seqs:
    b, s_q = q.shape[:2]
    _tensor("block_table", block_table, (b, "max_num_blocks_per_seq"), q.device)
    _dtype("block_table", block_table, (torch.int32,))
    if block_table.stride(1) != 1 and block_table.shape[1] > 1:
        raise ValueError(f"block_table's strides are {block_table.stride()}: the last must be 1")
    stride = block_table.stride(0) if b > 1 else block_table.shape[1]
    if stride < 1:
        raise ValueError(
            f"block_table's strides are {block_table.stride()}: a row for each sequence"
        )
    _tensor("cache_seqlens", cache_seqlens, (b,), q.device)
    _dtype("cache_seqlens", cache_seqlens, (torch.int32,))
    if not cache_seqlens.is_contiguous():
        raise ValueError("cache_seqlens must be contiguous")
    return _Seqs(
        n_seqs=b,
        query_rows=b * s_q,
        max_q_len=s_q,
        kv_lens=cache_seqlens.data_ptr(),
        block_tables=block_table.data_ptr(),
        table_stride=stride,
    )


def _check_q(q: object, head_dim_v: int) -> None:
    if not isinstance(q, torch.Tensor):
        raise TypeError(f"q must be a torch tensor, not {type(q).__name__}")
    if q.device.type != "cuda":
        raise ValueError(f"q is on {q.device}: libmla computes on CUDA devices")
    if q.dim() != 4 or 0 in q.shape[1:]:
        shape = tuple(q.shape)
        raise ValueError(f"q must have shape (b, seq_len_q, num_heads_q, head_dim), not {shape}")
    _dtype("q", q, (torch.bfloat16,))
    if q.shape[2] > MAX_HEADS:
        raise ValueError(f"q has {q.shape[2]} heads; at most {MAX_HEADS} are supported")
    if not 0 < head_dim_v <= q.shape[3]:
        raise ValueError(f"head_dim_v {head_dim_v} is not within q's head_dim {q.shape[3]}")


# ---- FlashMLA's functions --------------------------------------------------------------------


def get_mla_metadata(*args: object, **kwargs: object) -> tuple[None, None]:
    """Takes what FlashMLA's takes and returns (None, None) for flash_mla_with_kvcache: libmla plans
    a call on the device, from the lengths that it finds there."""
    return None, None


def flash_mla_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    head_dim_v: int,
    tile_scheduler_metadata: object = None,
    num_splits: object = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    is_fp8_kvcache: bool = False,
    indices: None = None,
    *,
    batch_invariant: bool = False,
    **sparse: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of the queries over a paged MLA cache, all heads sharing a row of it.

    q: (b, s_q, h_q, 576) bfloat16, 1 to 128 heads; copied if not contiguous.
    k_cache: (num_blocks, 64, 1, 576) bfloat16. With is_fp8_kvcache (num_blocks, 64, 1, 656) uint8,
        int8 or float8_e4m3fn: a row is 512 e4m3 values, 4 float32 scales (powers of two) of 128
        values each, 64 bfloat16 of the rope part.
    block_table: (b, max_blocks) int32, the blocks of each sequence in order; entries past its
        length may hold anything.
    cache_seqlens: (b,) int32, tokens in the cache, those of q included.
    head_dim_v: 512, the latent part; the rest of head_dim is the rope part. 256 + 64 and 256 + 32
        work too.
    tile_scheduler_metadata, num_splits: not used, whatever they hold.
    softmax_scale: None is head_dim ** -0.5, as in FlashMLA. (A model's own is
        (nope + rope) ** -0.5, times YaRN's mscale ** 2.)
    causal: the last query sees the whole sequence, each earlier one a token less.
    batch_invariant: a sequence's result has the same bits whatever else is in the batch; some
        slower.
    indices and the other arguments of sparse attention must be None.

    Returns out (b, s_q, h_q, 512) bfloat16, and lse (b, h_q, s_q) float32, the natural log of the
    sum of exponentials, as a view of memory in the order (b, s_q, h_q). A query that sees no token
    has out 0 and lse +infinity.
    """
    for name in sparse.keys() - SPARSE_ARGUMENTS:
        raise TypeError(f"flash_mla_with_kvcache() got an unexpected keyword argument '{name}'")
    for name, value in {"indices": indices, **sparse}.items():
        if value is not None:
            raise NotImplementedError(f"{name} must be None: libmla has no sparse attention")
    _check_q(q, head_dim_v)
    b, s_q, h_q, head_dim = q.shape
    scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
    if not 0 < scale < float("inf"):
        raise ValueError(f"softmax_scale must be positive and finite, not {scale}")
    cache = _cache(k_cache, head_dim_v, head_dim - head_dim_v, is_fp8_kvcache, q.device)
    seqs = _seqs(q, block_table, cache_seqlens)
    q = q.contiguous()
    if q.data_ptr() % 16 != 0:
        raise ValueError("q must begin at a multiple of 16 bytes")
    out = torch.empty((b, s_q, h_q, head_dim_v), dtype=torch.bfloat16, device=q.device)
    lse = torch.empty((b, s_q, h_q), dtype=torch.float32, device=q.device)
    if b > 0:
        library = _library or load()
        with torch.cuda.device(q.device):
            stream = torch.cuda.current_stream(q.device).cuda_stream
            size = library.mla_decode_workspace(b, b * s_q, h_q, head_dim_v)
            workspace = _workspace(q.device, stream, size)
            args = _DecodeArgs(
                cache=cache,
                seqs=seqs,
                q=q.data_ptr(),
                out=out.data_ptr(),
                lse=lse.data_ptr(),
                heads=h_q,
                softmax_scale=scale,
                causal=bool(causal),
                batch_invariant=bool(batch_invariant),
                workspace=workspace.data_ptr(),
                workspace_bytes=workspace.numel(),
            )
            status = library.mla_decode(ctypes.byref(args), stream)
        if status != 0:
            text = library.mla_status_text(status).decode()
            raise RuntimeError(f"mla_decode, status {status}: {text}")
    return out, lse.transpose(1, 2)
