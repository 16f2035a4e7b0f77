#!/usr/bin/env python3
"""Make the oracle vectors of quantized checkpoints, as make_families.py does.

    make_quantized.py                     every model below, into tiny/<name>/
    make_quantized.py kimi_k2_int4        only these
    make_quantized.py --check             recompute, write nothing, fail on a difference

What compressed-tensors quantizes is packed by that library, and unpacked by it for the oracle: with
its scales widened to fp32 before, so that values are exact products (at the scales' own bf16 they
would be rounded once more). FP8 in blocks is DeepSeek's (make_logits.py); activations are not
quantized.
"""

import math

import torch
from compressed_tensors.compressors.naive_quantized import FloatQuantizationCompressor
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import (
    QuantizationArgs, QuantizationConfig, QuantizationScheme,
)  # fmt: skip
from compressed_tensors.utils.match import match_name
from make_families import Family, longcat, main, renamed
from make_logits import BOS, EOS, FP8_BLOCK, FP8_MAX, Tensors, block_scales, config, yarn

INT4_MAX = 7.0
KIMI_IGNORES = ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*",
                r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"]  # fmt: skip

# ---- compressed-tensors --------------------------------------------------------------------------


class Compressed:
    """One group of weights, stored and widened by the library."""

    def __init__(self, ignore: list[str], dtype: torch.dtype, **weights) -> None:
        packed = weights["num_bits"] == 4
        self.compressor = PackedQuantizationCompressor if packed else FloatQuantizationCompressor
        self.scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
        self.most = INT4_MAX if packed else FP8_MAX
        self.ignore, self.dtype = ignore, dtype
        self.json = QuantizationConfig(
            config_groups={"group_0": self.scheme}, ignore=ignore, quantization_status="compressed",
            format="pack-quantized" if packed else "float-quantized",
        ).model_dump(mode="json")  # fmt: skip

    def takes(self, name: str) -> bool:
        module = name.removesuffix(".weight")
        linear = module.endswith(("_proj", "_mqa", "lm_head"))
        return linear and not any(match_name(module, pattern) for pattern in self.ignore)

    def scale(self, weight: torch.Tensor) -> torch.Tensor:
        size = self.scheme.weights.group_size
        groups = weight.unflatten(-1, (-1, size)) if size else weight[:, None]
        return (groups.abs().amax(-1) / self.most).to(self.dtype)

    def store(self, tensors: Tensors) -> Tensors:
        out: Tensors = {}
        for name, value in tensors.items():
            if not self.takes(name):
                out[name] = value.to(torch.bfloat16)
                continue
            state = {"weight": value, "weight_scale": self.scale(value)}
            state = self.compressor.compress(state, self.scheme)
            out |= {name.removesuffix("weight") + key: v for key, v in state.items()}
        return out

    def widen(self, tensors: Tensors) -> Tensors:
        out: Tensors = {}
        for name, value in tensors.items():
            module, _, part = name.rpartition(".")
            if part in ("weight_scale", "weight_shape"):
                continue
            if module + ".weight_scale" not in tensors:
                out[name] = value.float()
                continue
            state = {part: value, "weight_scale": tensors[module + ".weight_scale"].float()}
            if module + ".weight_shape" in tensors:
                state["weight_shape"] = tensors[module + ".weight_shape"]
            state = self.compressor.decompress(state, self.scheme)
            out[module + ".weight"] = state["weight"].float()
        return out


def int4(ignore: list[str], dtype: torch.dtype = torch.bfloat16, **more) -> Compressed:
    weights = dict(num_bits=4, type="int", symmetric=True, strategy="group", group_size=32)
    return Compressed(ignore, dtype, **(weights | more))


# ---- DeepSeek's FP8 ------------------------------------------------------------------------------


def to_blocks(tensors: Tensors, scale_type: torch.dtype) -> Tensors:
    """E4M3 with a power of two for each 128x128 block, as "scale_fmt": "ue8m0" says."""
    out: Tensors = {}
    for name, value in tensors.items():
        if not name.endswith(("_proj.weight", "_mqa.weight", "wq_b.weight", "wk.weight")):
            out[name] = value.to(torch.bfloat16)
            continue
        blocks = [[2.0 ** math.ceil(math.log2(b.abs().max() / FP8_MAX))
                   for b in row.split(FP8_BLOCK, 1)]
                  for row in value.split(FP8_BLOCK, 0)]  # fmt: skip
        scales = torch.tensor(blocks)
        out[name] = (value / block_scales(scales, value.shape)).to(torch.float8_e4m3fn)
        out[name.removesuffix("weight") + "weight_scale_inv"] = scales.to(scale_type)
    return out


def from_blocks(tensors: Tensors) -> Tensors:
    out = {name: v.float() for name, v in tensors.items() if not name.endswith("scale_inv")}
    for name in out:
        if name + "_scale_inv" in tensors:
            scales = tensors[name + "_scale_inv"].float()
            out[name] *= block_scales(scales, out[name].shape)
    return out


def fp8(name: str, scale_type: torch.dtype, full: dict, **more) -> Family:
    released = full | {"quantization_config": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
        "scale_fmt": "ue8m0", "weight_block_size": [FP8_BLOCK, FP8_BLOCK]}}  # fmt: skip
    return Family(name, full, released, full, store=lambda t: to_blocks(t, scale_type),
                  widen=from_blocks, dtype=None, **more)  # fmt: skip


# ---- the models ----------------------------------------------------------------------------------


def compressed(name: str, full: dict, quant: Compressed, **more) -> Family:
    kind = {"model_type": "kimi_k2"} if name.startswith("kimi") else {}
    released = full | {"quantization_config": quant.json} | kind
    return Family(name, full, released, full, store=quant.store, widen=quant.widen, dtype=None,
                  **more)  # fmt: skip


def kimi(**changes) -> dict:
    return config("v3", **(dict(
        n_group=1, topk_group=1, routed_scaling_factor=2.827, rope_theta=50000.0,
        rope_scaling=yarn(32, 64, 1.0, 1.0, beta_fast=1.0), n_routed_experts=6,
        num_experts_per_tok=2, max_position_embeddings=2048, torch_dtype="bfloat16",
        hidden_size=64, moe_intermediate_size=32, intermediate_size=64, rms_norm_eps=1e-5,
    ) | changes))  # fmt: skip


def kimi_k25(quant: Compressed) -> Family:
    """Inside a model with images; the text model's configuration says how it is quantized."""
    full = kimi(num_hidden_layers=3)
    prefix = [("model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")]
    back = [(new, old) for old, new in prefix]
    return Family(
        "kimi_k25_int4", full,
        {"architectures": ["KimiK25ForConditionalGeneration"], "model_type": "kimi_k25",
         "bos_token_id": BOS, "eos_token_id": EOS, "tie_word_embeddings": False,
         "text_config": full | {"model_type": "kimi_k2", "quantization_config": quant.json},
         "vision_config": {"model_type": "kimi_k25_vision"}},
        full, store=lambda t: renamed(quant.store(t), prefix), widen=quant.widen,
        restore=lambda t: renamed(t, back), dtype=None, shards=2,
        extra={"vision_tower.encoder.blocks.0.norm0.weight": torch.ones(8)},
    )  # fmt: skip


def longcat_fp8() -> Family:
    family = longcat("longcat_flash_fp8", 2, {}, num_hidden_layers=2, hidden_size=128,
                     intermediate_size=160, moe_intermediate_size=128, q_lora_rank=64,
                     kv_lora_rank=64, n_routed_experts=4, num_experts_per_tok=2)  # fmt: skip
    names = family.store
    family.released |= {"quantization_config": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
        "weight_block_size": [FP8_BLOCK, FP8_BLOCK]}}  # fmt: skip
    family.store = lambda t: to_blocks(names(t), torch.float32)
    family.widen, family.dtype = from_blocks, None
    return family


def all_models() -> list[Family]:
    whole = dict(hidden_size=128, moe_intermediate_size=128, intermediate_size=128,
                 q_lora_rank=128, kv_lora_rank=128)  # fmt: skip
    return [
        # Kimi-K2-Thinking: experts alone; of a size that a GPU keeps packed.
        compressed(
            "kimi_k2_int4",
            kimi(hidden_size=128, moe_intermediate_size=128), int4(KIMI_IGNORES), shards=2,
        ),
        # Kimi-K2.5: attention and head stay, shared experts and dense layers don't.
        kimi_k25(int4(["re:.*self_attn.*", "re:.*lm_head"])),
        # A scale for a whole row, in F16; attention and the head too.
        compressed(
            "v3_int4_channel", config("v3", q_lora_rank=48, moe_intermediate_size=24),
            int4([], torch.float16, strategy="channel", group_size=None),
        ),
        # Wider groups, which a GPU gets as groups of 32.
        compressed(
            "v3_int4_g128",
            config("v3", hidden_size=128, moe_intermediate_size=128, n_routed_experts=8,
                   num_experts_per_tok=2, n_group=2, topk_group=1, vocab_size=96),
            int4(["lm_head", "re:.*self_attn.*", "re:.*mlp.(gate|up|down)_proj$"], group_size=128),
        ),
        # FP8 with a scale for a row.
        compressed(
            "v3_fp8_channel", config("v3", hidden_size=48, n_routed_experts=8, n_group=2,
                                     topk_group=1, num_experts_per_tok=2),
            Compressed(["lm_head"], torch.bfloat16, num_bits=8, type="float", symmetric=True,
                       strategy="channel"),
        ),
        # DeepSeek-V3.2 in whole blocks, whose scales are stored as exponents.
        fp8(
            "v32_fp8", torch.float8_e8m0fnu,
            config("v3", model_type="deepseek_v32", architectures=["DeepseekV32ForCausalLM"],
                   index_topk=40, index_n_heads=8, index_head_dim=32, n_routed_experts=4,
                   n_group=2, topk_group=1, num_experts_per_tok=1, v_head_dim=64,
                   qk_nope_head_dim=48, max_position_embeddings=1280, torch_dtype="bfloat16",
                   rope_scaling=yarn(40, 32, 1.0, 1.0), **whole),
            positions=(0, 31, 38, 39, 40, 41, 63, 64, 96), gains=dict(score=1.1),
        ),
        # GLM-5 in whole blocks.
        fp8(
            "glm_moe_dsa_fp8", torch.float32,
            config("v3", model_type="glm_moe_dsa", architectures=["GlmMoeDsaForCausalLM"],
                   index_topk=64, index_n_heads=12, index_head_dim=32, n_group=1, topk_group=1,
                   n_routed_experts=4, num_experts_per_tok=1, qk_nope_head_dim=48, v_head_dim=64,
                   rms_norm_eps=1e-5, rope_theta=1000000.0, torch_dtype="bfloat16",
                   mlp_layer_types=["dense", "sparse"], **whole),
        ),
        # LongCat-Flash in blocks, its own names around them.
        longcat_fp8(),
        # GLM-4.7-Flash in FP8 with a scale for a row, and yarn.
        compressed(
            "glm4_moe_lite_fp8",
            config("v3", model_type="glm4_moe_lite", architectures=["Glm4MoeLiteForCausalLM"],
                   hidden_size=48, n_group=1, topk_group=1, n_routed_experts=6, v_head_dim=32,
                   num_experts_per_tok=3, num_attention_heads=3, rope_theta=1000000.0,
                   mlp_layer_types=["dense", "sparse", "sparse"], num_hidden_layers=3,
                   rope_scaling=yarn(16, 64, 1.0, 1.0), torch_dtype="bfloat16"),
            Compressed(["lm_head"], torch.bfloat16, num_bits=8, type="float", symmetric=True,
                       strategy="channel"), shards=2,
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    main(all_models(), 200000, "quantized checkpoints")
