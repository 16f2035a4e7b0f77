#!/usr/bin/env python3
"""Make the oracle vectors: tiny checkpoints, and the logits transformers computes from them.

    make_logits.py                      every tiny model below, into tiny/<name>/
    make_logits.py v2_lite v3_fp8       only these
    make_logits.py --check              recompute, write nothing, fail on a difference
    make_logits.py --demo model/demo    vectors of an existing checkpoint, into demo/

A tiny checkpoint is written tensor by tensor under the names the released DeepSeek checkpoints use,
with a config.json in their style, and then *loaded back* with AutoModelForCausalLM: every number in
expected.json and expected.f32 comes from the reloaded folder, run in fp32 with eager attention and
eager experts. Weights are random; the prompt is searched so that no decision along the way is a
near-tie (see `acceptable`), which lets an implementation with other rounding be compared by ids.

What transformers 5.17 does not implement has no vector here: it ignores `moe_layer_freq`, and in
deepseek_v2 also `norm_topk_prob`; released checkpoints set them to 1 and false.
"""

import argparse
import json
import math
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM
from transformers.utils import logging

HERE = Path(__file__).resolve().parent
GREEDY_TOKENS = 128
FP8_BLOCK = 128
FP8_MAX = 448.0
MIN_LOGIT_MARGIN = 1e-3  # top-1 minus top-2, as a part of the range of the logits
MIN_ROUTER_MARGIN = 1e-4  # last chosen minus first left out, in the scores that are ranked
MIN_INDEX_MARGIN = 1e-5  # last token chosen minus first left out, as a part of the scores' range
MIN_ROUTER_MARGIN_DEMO = 1e-6  # thousands of decisions are made there: only exact ties are avoided
PROMPTS_PER_SEED = 150
BOS, EOS, FIRST_TEXT_ID = 0, 1, 4

Tensors = dict[str, torch.Tensor]


@dataclass
class Tiny:
    """One tiny model: its config.json, how it is stored, and how its random weights are scaled."""

    name: str
    config: dict
    dtype: torch.dtype = torch.float32
    fp8: bool = False
    shards: int = 1
    prompt_len: int = 97
    positions: tuple[int, ...] = (0, 31, 32, 63, 64, 96)
    gains: dict = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return HERE / "tiny" / self.name


# Standard deviations. A linear layer's weights have gain / sqrt(inputs), so that a gain of 1 keeps
# the size of a normalised input; `score` is the gain of q and k, about the square root of the
# standard deviation of an attention score (before yarn's mscale^2).
GAINS = dict(embed=1.0, score=1.5, latent=1.0, value=1.3, ffn=1.6, expert_down=1.6, router=2.0,
             router_bias=0.15, router_bias_mean=0.0, bias=0.3, head=2.2)  # fmt: skip


def config(family: str, **changes) -> dict:
    """config.json in the style of the released DeepSeek-V2 or V3 checkpoint, at a tiny size."""
    v3 = family == "v3"
    base = {
        "architectures": ["DeepseekV3ForCausalLM" if v3 else "DeepseekV2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "kv_lora_rank": 32,
        "max_position_embeddings": 1024,
        "model_type": "deepseek_v3" if v3 else "deepseek_v2",
        "moe_intermediate_size": 16,
        "moe_layer_freq": 1,
        "n_group": 4 if v3 else 1,
        "n_routed_experts": 16 if v3 else 8,
        "n_shared_experts": 1 if v3 else 2,
        "norm_topk_prob": v3,
        "num_attention_heads": 2,
        "num_experts_per_tok": 4 if v3 else 3,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "q_lora_rank": 32 if v3 else None,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 10000,
        "routed_scaling_factor": 2.5 if v3 else 1.0,
        "scoring_func": "sigmoid" if v3 else "softmax",
        "tie_word_embeddings": False,
        "topk_group": 2 if v3 else 1,
        "topk_method": "noaux_tc" if v3 else "greedy",
        "torch_dtype": "float32",
        "transformers_version": "4.33.1",
        "use_cache": True,
        "v_head_dim": 16,
        "vocab_size": 128,
    }
    if v3:
        base["num_nextn_predict_layers"] = 0
    merged = base | changes
    if "rope_parameters" in merged:  # the style transformers 5 writes, instead of the released one
        del merged["rope_theta"], merged["rope_scaling"]
    merged["num_key_value_heads"] = merged["num_attention_heads"]
    return dict(sorted(merged.items()))


def yarn(factor: float, original: int, mscale: float, mscale_all_dim: float, **more) -> dict:
    return {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": factor,
        "mscale": mscale,
        "mscale_all_dim": mscale_all_dim,
        "original_max_position_embeddings": original,
        "type": "yarn",
    } | more


def without_experts(full: dict) -> dict:
    """A config.json that says nothing of experts; its layers are those of first_k_dense_replace."""
    words = ("expert", "moe", "group", "topk", "scoring", "routed", "nextn")
    return {key: value for key, value in full.items() if not any(w in key for w in words)}


# fmt: off
MODELS = [
    # V2-Lite: q_proj, softmax top-k, no groups, no scaling, plain rope.
    Tiny("v2_lite", config("v2", num_hidden_layers=3, n_routed_experts=6)),
    # V2: q_lora, group_limited_greedy, weights x16, yarn (softmax scale x mscale^2), BF16.
    Tiny(
        "v2_group_yarn_bf16",
        config(
            "v2", hidden_size=64, num_attention_heads=4, q_lora_rank=32, intermediate_size=64,
            n_routed_experts=16, n_group=4, topk_group=2, topk_method="group_limited_greedy",
            routed_scaling_factor=16.0, max_position_embeddings=1280, torch_dtype="bfloat16",
            rope_scaling=yarn(40, 32, 0.707, 0.707),
        ),
        dtype=torch.bfloat16,
        gains=dict(score=1.2, expert_down=0.25),
    ),
    # V3: sigmoid scores with a correction bias, 4 groups keep 2, yarn with mscale 1/1.
    Tiny(
        "v3_group_yarn",
        config("v3", max_position_embeddings=1280, rope_scaling=yarn(40, 32, 1.0, 1.0)),
        gains=dict(score=1.1),
    ),
    # Moonlight: q_proj, one group, eps 1e-5, theta 5e4, F16, sharded. Small embeddings and latents
    # make the epsilons visible: rms_norm_eps on the residual stream, 1e-6 on the latent.
    Tiny(
        "v3_moonlight_f16",
        config(
            "v3", hidden_size=48, kv_lora_rank=64, num_hidden_layers=3, q_lora_rank=None,
            n_group=1, topk_group=1, n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=3,
            routed_scaling_factor=2.446, rms_norm_eps=1e-5, rope_theta=50000.0, vocab_size=160,
            intermediate_size=64, torch_dtype="float16",
        ),
        dtype=torch.float16,
        shards=3,
        gains=dict(embed=0.03, latent=0.03),
    ),
    # DeepSeek-V3's FP8: 128x128 blocks, most of them cut short by the matrix's edge, and a kv_b
    # whose heads straddle the blocks. The oracle multiplies the same bytes out to fp32; it does
    # not quantise activations.
    Tiny(
        "v3_fp8",
        config(
            "v3", hidden_size=160, num_attention_heads=4, kv_lora_rank=64, q_lora_rank=48,
            qk_nope_head_dim=32, intermediate_size=208, moe_intermediate_size=48,
            n_routed_experts=8, num_experts_per_tok=3, torch_dtype="bfloat16",
            quantization_config={
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "quant_method": "fp8",
                "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
            },
        ),
        dtype=torch.bfloat16,
        fp8=True,
    ),
    # Biases on q_a, kv_a and o (never on q_b, kv_b or q_proj), tied embeddings, v wider than nope.
    Tiny(
        "v3_bias_tied",
        config(
            "v3", attention_bias=True, tie_word_embeddings=True, v_head_dim=32,
            num_attention_heads=3, n_routed_experts=8, num_experts_per_tok=2,
        ),
        gains=dict(embed=0.4),
    ),
    # V2 without a dense layer, greedy with scaling, rope in the style transformers 5 writes.
    Tiny(
        "v2_all_moe",
        config(
            "v2", first_k_dense_replace=0, n_routed_experts=8, num_experts_per_tok=2,
            routed_scaling_factor=1.5, v_head_dim=32, vocab_size=160,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
    ),
    # V3 without experts; the prompt covers several cache pages.
    Tiny(
        "v3_dense_long",
        config(
            "v3", first_k_dense_replace=2, rope_interleave=True, num_attention_heads=3,
            qk_nope_head_dim=32, v_head_dim=32, intermediate_size=96,
        ),
        prompt_len=300,
        positions=(0, 63, 64, 127, 200, 299),
    ),
    # yarn with mscale != mscale_all_dim: cos and sin carry the ratio; a wide ramp of frequencies;
    # rope_parameters style. Small latents tell rms_norm_eps (1e-5) from the latent norms' 1e-6.
    # A negative correction bias makes the ranked scores negative: masked groups are -inf, not 0.
    Tiny(
        "v3_yarn_ratio",
        config(
            "v3", n_routed_experts=12, num_experts_per_tok=3, rms_norm_eps=1e-5,
            qk_rope_head_dim=32, max_position_embeddings=1024,
            rope_parameters={
                "beta_fast": 8.0, "beta_slow": 1.0, "factor": 16.0, "mscale": 1.2,
                "mscale_all_dim": 0.6, "original_max_position_embeddings": 64, "rope_theta": 500.0,
                "rope_type": "yarn",
            },
        ),
        gains=dict(score=1.1, latent=0.03, router_bias_mean=-0.9),
    ),
    # GLM-4.7-Flash: V3's layers, one group, wide heads; which layers are MoE stands in a list.
    Tiny(
        "glm4_moe_lite",
        config(
            "v3", model_type="glm4_moe_lite", architectures=["Glm4MoeLiteForCausalLM"],
            num_hidden_layers=3, n_group=1, topk_group=1, n_routed_experts=8, v_head_dim=40,
            qk_nope_head_dim=24, num_experts_per_tok=2, routed_scaling_factor=1.8,
            rms_norm_eps=1e-5, rope_theta=1000000.0, num_attention_heads=5,
            mlp_layer_types=["dense", "sparse", "sparse"],
        ),
    ),
    # DeepSeek-V3.2: rows attend to 40 tokens at most; yarn with a ratio of mscales, so that the
    # indexer's half-split rope carries it too.
    Tiny(
        "v32",
        config(
            "v3", model_type="deepseek_v32", architectures=["DeepseekV32ForCausalLM"],
            num_hidden_layers=3, index_topk=40, index_n_heads=8, index_head_dim=32,
            n_routed_experts=8, num_experts_per_tok=2, max_position_embeddings=1280,
            rope_scaling=yarn(40, 32, 1.0, 0.8),
        ),
        positions=(0, 31, 38, 39, 40, 41, 63, 64, 96),
        gains=dict(score=1.1),
    ),
    # GLM-5: the indexer's rope is interleaved, and layers share a choice of 64 tokens, a whole
    # page; the prompt covers several.
    Tiny(
        "glm_moe_dsa",
        config(
            "v3", model_type="glm_moe_dsa", architectures=["GlmMoeDsaForCausalLM"],
            num_hidden_layers=4, index_topk=64, index_n_heads=12, index_head_dim=32,
            indexer_types=["full", "full", "shared", "full"], n_group=1, topk_group=1,
            n_routed_experts=8, num_experts_per_tok=2, qk_nope_head_dim=24, v_head_dim=40,
            num_attention_heads=3, rms_norm_eps=1e-5, rope_theta=1000000.0,
            mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
        ),
        prompt_len=150,
        positions=(0, 62, 63, 64, 65, 127, 128, 149),
    ),
    # The same without an indexer's work: no row has more than index_topk tokens before it.
    Tiny(
        "glm_moe_dsa_short",
        config(
            "v3", model_type="glm_moe_dsa", architectures=["GlmMoeDsaForCausalLM"],
            index_topk=2048, index_n_heads=4, index_head_dim=32, index_topk_freq=2,
            index_skip_topk_offset=1, n_group=1, topk_group=1, n_routed_experts=8,
            num_experts_per_tok=2, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default",
            "rope_theta": 1000000.0},
        ),
    ),
    # Youtu-LLM: the attention without experts; tied embeddings are what an absent key means.
    Tiny(
        "youtu",
        without_experts(config(
            "v3", model_type="youtu", architectures=["YoutuForCausalLM"], rope_theta=1600000.0,
            first_k_dense_replace=2, num_attention_heads=4, q_lora_rank=48, intermediate_size=96,
            tie_word_embeddings=True,
        )),
        gains=dict(embed=0.4),
    ),
]
# fmt: on


# ---- writing a checkpoint -----------------------------------------------------------------------


def has_indexer(cfg: dict, layer: int) -> bool:
    """Does this layer choose tokens itself, or (False) take those of a layer before?"""
    if "index_topk" not in cfg:
        return False
    if "indexer_types" in cfg:
        return cfg["indexer_types"][layer] == "full"
    after = layer - cfg.get("index_skip_topk_offset", 2) + 1
    return max(after, 0) % cfg.get("index_topk_freq", 1) == 0


def random_tensors(cfg: dict, gains: dict, rng: torch.Generator) -> Tensors:
    """Random fp32 weights for `cfg`, by their released names; linear weights are [out, in]."""
    g = GAINS | gains
    d, heads = cfg["hidden_size"], cfg["num_attention_heads"]
    nope, rope, v = cfg["qk_nope_head_dim"], cfg["qk_rope_head_dim"], cfg["v_head_dim"]
    q_lora, kv_lora = cfg["q_lora_rank"], cfg["kv_lora_rank"]
    out: Tensors = {}

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    def linear(rows: int, cols: int, gain: float) -> torch.Tensor:
        return normal(rows, cols) * (gain / math.sqrt(cols))

    def norm(width: int) -> torch.Tensor:
        return torch.exp(0.25 * normal(width))

    def mlp(prefix: str, width: int, down: float) -> None:
        out[prefix + "gate_proj.weight"] = linear(width, d, g["ffn"])
        out[prefix + "up_proj.weight"] = linear(width, d, 1.0)
        out[prefix + "down_proj.weight"] = linear(d, width, down)

    def attention(prefix: str) -> None:
        if q_lora is None:
            out[prefix + "q_proj.weight"] = linear(heads * (nope + rope), d, g["score"])
        else:
            out[prefix + "q_a_proj.weight"] = linear(q_lora, d, g["latent"])
            out[prefix + "q_a_layernorm.weight"] = norm(q_lora)
            out[prefix + "q_b_proj.weight"] = linear(heads * (nope + rope), q_lora, g["score"])
        kv_a = torch.cat([linear(kv_lora, d, g["latent"]), linear(rope, d, g["score"])])
        out[prefix + "kv_a_proj_with_mqa.weight"] = kv_a
        out[prefix + "kv_a_layernorm.weight"] = norm(kv_lora)
        kv_b = [
            torch.cat([linear(nope, kv_lora, g["score"]), linear(v, kv_lora, g["value"])])
            for _ in range(heads)
        ]
        out[prefix + "kv_b_proj.weight"] = torch.cat(kv_b)
        out[prefix + "o_proj.weight"] = linear(d, heads * v, g["value"])
        if cfg["attention_bias"]:
            biased = ["kv_a_proj_with_mqa", "o_proj"] + ["q_a_proj"] * (q_lora is not None)
            for name in biased:
                rows = out[f"{prefix}{name}.weight"].shape[0]
                out[f"{prefix}{name}.bias"] = g["bias"] * normal(rows)

    def indexer(prefix: str) -> None:
        n, width = cfg["index_n_heads"], cfg["index_head_dim"]
        out[prefix + "wq_b.weight"] = linear(n * width, q_lora, g["score"])
        out[prefix + "wk.weight"] = linear(width, d, 1.0)
        out[prefix + "k_norm.weight"] = norm(width)
        out[prefix + "k_norm.bias"] = g["bias"] * normal(width)
        out[prefix + "weights_proj.weight"] = linear(n, d, 1.0)

    def experts(prefix: str) -> None:
        n, width = cfg["n_routed_experts"], cfg["moe_intermediate_size"]
        out[prefix + "gate.weight"] = linear(n, d, g["router"])
        if cfg["topk_method"] == "noaux_tc":
            bias = g["router_bias_mean"] + g["router_bias"] * normal(n)
            out[prefix + "gate.e_score_correction_bias"] = bias
        for e in range(n):
            mlp(f"{prefix}experts.{e}.", width, g["expert_down"])
        mlp(prefix + "shared_experts.", width * cfg["n_shared_experts"], g["ffn"])

    out["model.embed_tokens.weight"] = g["embed"] * normal(cfg["vocab_size"], d)
    for layer in range(cfg["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        attention(prefix + "self_attn.")
        if has_indexer(cfg, layer):
            indexer(prefix + "self_attn.indexer.")
        if layer < cfg["first_k_dense_replace"]:
            mlp(prefix + "mlp.", cfg["intermediate_size"], g["ffn"])
        else:
            experts(prefix + "mlp.")
        out[prefix + "input_layernorm.weight"] = norm(d)
        out[prefix + "post_attention_layernorm.weight"] = norm(d)
    out["model.norm.weight"] = norm(d)
    if not cfg["tie_word_embeddings"]:
        out["lm_head.weight"] = linear(cfg["vocab_size"], d, g["head"])
    return out


def block_scales(scales: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Spread [ceil(rows/128), ceil(cols/128)] block scales over a matrix of `shape`."""
    wide = scales.repeat_interleave(FP8_BLOCK, 0).repeat_interleave(FP8_BLOCK, 1)
    return wide[: shape[0], : shape[1]]


def to_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise to E4M3 with one scale (amax / 448) for each 128x128 block."""
    blocks = [[b.abs().max() / FP8_MAX for b in row.split(FP8_BLOCK, 1)]
              for row in weight.split(FP8_BLOCK, 0)]  # fmt: skip
    scales = torch.tensor(blocks, dtype=torch.float32)
    return (weight / block_scales(scales, weight.shape)).to(torch.float8_e4m3fn), scales


def stored(tiny: Tiny, tensors: Tensors) -> Tensors:
    """The tensors in the types the checkpoint stores."""
    out: Tensors = {}
    for name, value in tensors.items():
        linear = name.endswith("_proj.weight") or name.endswith("_mqa.weight")
        if tiny.fp8 and linear:
            out[name], out[name.removesuffix("weight") + "weight_scale_inv"] = to_fp8(value)
        elif tiny.fp8 and name.endswith("e_score_correction_bias"):
            out[name] = value  # F32 in DeepSeek-V3's checkpoint
        else:
            out[name] = value.to(tiny.dtype)
    return {name: value.contiguous() for name, value in out.items()}


def write_checkpoint(folder: Path, cfg: dict, tensors: Tensors, shards: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(cfg, indent=2) + "\n")
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    size = math.ceil(len(names) / shards)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard * size : (shard + 1) * size]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


# ---- running it ---------------------------------------------------------------------------------


def load(folder: Path) -> torch.nn.Module:
    """Load a checkpoint folder into transformers' own graph, in fp32."""
    cfg = json.loads((folder / "config.json").read_text())
    if cfg.get("quantization_config", {}).get("quant_method") == "fp8":
        with tempfile.TemporaryDirectory() as scratch:
            return load(dequantised(folder, cfg, Path(scratch) / "fp32"))
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    model.set_experts_implementation("eager")
    wrong = {key: value for key, value in info.items() if value}
    if wrong:
        raise SystemExit(f"{folder}: transformers does not take this checkpoint whole: {wrong}")
    return model.eval()


def dequantised(folder: Path, cfg: dict, into: Path) -> Path:
    """Write the FP8 checkpoint's bytes out as an fp32 checkpoint.

    transformers 5.17 can do this itself, but divides a matrix evenly over its scales (160 rows and
    2 scales: 80 and 80), where DeepSeek's blocks are 128 and the last is cut short (128 and 32).
    """
    tensors: Tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    scales = {n: tensors.pop(n) for n in list(tensors) if n.endswith("weight_scale_inv")}
    for name, value in tensors.items():
        tensors[name] = value.float()
        if name + "_scale_inv" in scales:
            tensors[name] *= block_scales(scales[name + "_scale_inv"], value.shape)
    plain = {key: value for key, value in cfg.items() if key != "quantization_config"}
    write_checkpoint(into, plain, tensors, shards=1)
    return into


class RouterWatch:
    """Records the routers' narrowest decision, and whether groups or bias ever changed one."""

    def __init__(self, model: torch.nn.Module, floor: float):
        self.floor = floor  # a decision narrower than this spoils the prompt
        self.indexers = IndexWatch(model)
        self.routers = [m for m in model.modules() if type(m).__name__.endswith("TopkRouter")]
        for router in self.routers:
            router.register_forward_hook(self.observe)
        self.reset()

    def reset(self) -> None:
        self.margin, self.groups_matter, self.bias_matters = math.inf, False, False
        self.indexers.margin = math.inf

    def spoiled(self) -> bool:
        return self.margin < self.floor or self.indexers.margin < MIN_INDEX_MARGIN

    def observe(self, router, _inputs, output) -> None:
        logits, _, chosen = output
        bias = getattr(router, "e_score_correction_bias", None)
        plain = logits.softmax(-1) if bias is None else logits.sigmoid()
        scores = plain if bias is None else plain + bias
        plain_best = scores if bias is None else plain
        grouped = bias is not None or router.topk_method == "group_limited_greedy"
        if grouped and router.num_group > router.topk_group:
            members = scores.view(scores.shape[0], router.num_group, -1)
            best = members.topk(2 if bias is not None else 1, -1)[0].sum(-1)
            self.narrow(best, router.topk_group)
            kept = best.topk(router.topk_group, -1)[1]
            mask = torch.zeros_like(best).scatter_(1, kept, 1).bool()
            free = scores
            scores = members.masked_fill(~mask[..., None], -math.inf).flatten(1)
            plain_best = plain.masked_fill(scores.isinf(), -math.inf)
            self.groups_matter |= self.differ(free, chosen)
        self.narrow(scores, router.top_k)
        assert not self.differ(scores, chosen)
        self.bias_matters |= self.differ(plain_best, chosen)

    def narrow(self, scores: torch.Tensor, k: int) -> None:
        """Keep the smallest distance between the k-th score and the next one."""
        if k < scores.shape[-1]:
            ranked = scores.sort(-1, descending=True)[0]
            self.margin = min(self.margin, (ranked[:, k - 1] - ranked[:, k]).min().item())

    @staticmethod
    def differ(scores: torch.Tensor, chosen: torch.Tensor) -> bool:
        best = scores.topk(chosen.shape[-1], -1)[1]
        return not torch.equal(best.sort(-1)[0], chosen.sort(-1)[0])


class IndexWatch(TorchFunctionMode):
    """Records how near the indexers came to choosing another token, while it is entered."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.inside, self.margin = False, math.inf
        for module in model.modules():
            if type(module).__name__.endswith("Indexer"):
                module.register_forward_pre_hook(lambda *_: self.enter(True))
                module.register_forward_hook(lambda *_: self.enter(False))

    def enter(self, inside: bool) -> None:
        self.inside = inside

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if self.inside and func is torch.Tensor.topk:
            scores, k = args[0], args[1]
            self.narrow(scores.flatten(0, -2).sort(-1, descending=True)[0], k)
        return func(*args, **(kwargs or {}))

    def narrow(self, ranked: torch.Tensor, k: int) -> None:
        """Rows of descending scores, those of tokens that aren't seen about finfo.min."""
        if k == ranked.shape[1]:
            return
        seen = ranked > torch.finfo(ranked.dtype).min / 2
        least = ranked.masked_fill(~seen, math.inf).amin(-1)
        margin = (ranked[:, k - 1] - ranked[:, k]) / (ranked[:, 0] - least)
        self.margin = min([self.margin, *margin[seen[:, k]].tolist()])


def logit_margin(logits: torch.Tensor) -> float:
    """Top-1 minus top-2 as a part of the range; logits: (vocab)."""
    top = logits.topk(2)[0]
    return ((top[0] - top[1]) / (logits.max() - logits.min())).item()


@torch.no_grad()
def greedy(model, watch: RouterWatch, prompt: list[int], min_margin: float, avoid: set[int]):
    """128 greedy ids after `prompt` and the narrowest margin, or None as soon as one is too narrow.

    End tokens do not stop it. `avoid` are ids whose appearance rejects the prompt.
    """
    watch.reset()
    ids, cache, narrowest = [], None, math.inf
    step = torch.tensor([prompt])
    while len(ids) < GREEDY_TOKENS:
        with watch.indexers:
            out = model(step, past_key_values=cache, use_cache=True)
        cache, logits = out.past_key_values, out.logits[0, -1]
        narrowest = min(narrowest, logit_margin(logits))
        ids.append(int(logits.argmax()))
        if narrowest < min_margin or ids[-1] in avoid or watch.spoiled():
            return None
        step = torch.tensor([ids[-1:]])
    return ids, narrowest


@torch.no_grad()
def vectors(model, prompt: list[int], ids: list[int], positions: tuple[int, ...]) -> dict:
    """The logits at `positions`, in one pass without a cache, which must agree with `ids` too."""
    logits = model(torch.tensor([prompt + ids[:-1]]), use_cache=False).logits[0]
    again = logits[len(prompt) - 1 :].argmax(-1).tolist()
    assert again == ids, "greedy decoding with and without a cache differ"
    return {"prompt": prompt, "greedy": ids, "positions": positions,
            "values": logits[list(positions)].numpy().astype("<f4")}  # fmt: skip


def write_vectors(folder: Path, result: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    logits = {"positions": list(result["positions"]), "values": "expected.f32"}
    parts = {"prompt": result["prompt"], "greedy": result["greedy"], "logits": logits}
    lines = [f'"{key}": {json.dumps(value)}' for key, value in parts.items()]
    (folder / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    result["values"].tofile(folder / "expected.f32")


# ---- choosing weights and prompts ---------------------------------------------------------------


def lively(ids: list[int]) -> bool:
    """Is this more than one token, or one short loop, again and again?"""
    longest = run = 1
    for a, b in zip(ids, ids[1:], strict=False):
        run = run + 1 if a == b else 1
        longest = max(longest, run)
    return longest <= 4 and len(set(ids)) >= 32 and len(set(ids[-48:])) >= 12


@torch.no_grad()
def healthy(model, prompt: list[int]) -> tuple[bool, str]:
    """Logits of a sensible size, and attention neither flat nor stuck on one key."""
    out = model(torch.tensor([prompt]), output_attentions=True, use_cache=False)
    spread = out.logits.std(-1).mean().item()
    rows = [layer[0, :, q, : q + 1] for layer in out.attentions for q in range(24, len(prompt), 8)]
    scores = np.mean([row.clamp_min(1e-30).log().std(-1).mean().item() for row in rows])
    peak = np.mean([row.max(-1)[0].mean().item() for row in rows])
    text = f"logit std {spread:.2f}, score std {scores:.2f}, mean peak of attention {peak:.2f}"
    return 1.0 <= spread <= 3.5 and scores >= 1.0 and peak <= 0.8, text


def acceptable(tiny: Tiny, watch: RouterWatch, ids: list[int]) -> bool:
    """Do the continuation and the routing along it put the implementation to the test?"""
    cfg = tiny.config
    grouped = watch.routers and cfg["topk_group"] < cfg["n_group"]
    biased = watch.routers and cfg["topk_method"] == "noaux_tc"
    return lively(ids) and (not grouped or watch.groups_matter) and (
        not biased or watch.bias_matters
    )  # fmt: skip


def make_tiny(tiny: Tiny) -> None:
    number = MODELS.index(tiny)
    for seed in range(1000 * number, 1000 * number + 50):
        rng = torch.Generator().manual_seed(seed)
        weights = random_tensors(tiny.config, tiny.gains, rng)
        write_checkpoint(tiny.folder, tiny.config, stored(tiny, weights), tiny.shards)
        model = load(tiny.folder)
        watch = RouterWatch(model, MIN_ROUTER_MARGIN)
        vocab = tiny.config["vocab_size"]
        draws = [
            [BOS]
            + torch.randint(FIRST_TEXT_ID, vocab, (tiny.prompt_len - 1,), generator=rng).tolist()
            for _ in range(PROMPTS_PER_SEED)
        ]
        ok, text = healthy(model, draws[0])
        print(f"{tiny.name}: seed {seed}: {text}", flush=True)
        for n, prompt in enumerate(draws if ok else []):
            found = greedy(model, watch, prompt, MIN_LOGIT_MARGIN, avoid={BOS, EOS})
            if found and acceptable(tiny, watch, found[0]):
                write_vectors(tiny.folder, vectors(model, prompt, found[0], tiny.positions))
                size = sum(f.stat().st_size for f in tiny.folder.iterdir())
                print(f"{tiny.name}: prompt {n}, {len(set(found[0]))} distinct ids, margins: logits"
                      f" {found[1]:.1e} of the range, router {watch.margin:.1e}, indexer"
                      f" {watch.indexers.margin:.1e};"
                      f" {size // 1000} kB", flush=True)  # fmt: skip
                return
    raise SystemExit(f"{tiny.name}: no prompt without a near-tie found")


def check(folder: Path, checkpoint: Path) -> None:
    """Recompute a folder's vectors from its checkpoint and compare."""
    expected = json.loads((folder / "expected.json").read_text())
    positions = expected["logits"]["positions"]
    old = np.fromfile(folder / expected["logits"]["values"], "<f4").reshape(len(positions), -1)
    new = vectors(load(checkpoint), expected["prompt"], expected["greedy"], positions)["values"]
    worst = float(np.abs(new - old).max())
    print(f"{folder.name}: largest difference {worst:.1e}", flush=True)
    if worst > 1e-4:
        raise SystemExit(f"{folder}: the vectors do not come from this checkpoint")


# ---- an existing checkpoint ---------------------------------------------------------------------


@torch.no_grad()
def sample_prompt(model, start: int, length: int, unwanted: set[int], seed: int) -> list[int]:
    """A prompt the model finds plausible: sampled from itself at temperature 1."""
    rng = torch.Generator().manual_seed(seed)
    ids, cache = [start], None
    while len(ids) < length:
        out = model(torch.tensor([ids[-1:]]), past_key_values=cache, use_cache=True)
        cache, logits = out.past_key_values, out.logits[0, -1].clone()
        logits[sorted(unwanted)] = -math.inf
        ids.append(int(torch.multinomial(logits.softmax(-1), 1, generator=rng)))
    return ids


def unwanted_ids(checkpoint: Path, cfg: dict) -> set[int]:
    """Ids that do not belong in running text: begin, end, added and unused ones."""
    ids = set()
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = cfg.get(key)
        ids |= set(value) if isinstance(value, list) else {value}
    tokenizer = checkpoint / "tokenizer.json"
    if tokenizer.exists():
        parts = json.loads(tokenizer.read_text())
        ids |= {token["id"] for token in parts.get("added_tokens", [])}
        ids |= set(range(cfg["vocab_size"])) - set(parts["model"]["vocab"].values())
    return ids & set(range(cfg["vocab_size"]))


def clearest_prompt(model, watch: RouterWatch, prompts: list[list[int]], avoid: set[int]):
    """The prompt whose continuation has the widest narrowest margin: (prompt, ids, margin)."""
    best = None
    for n, prompt in enumerate(prompts):
        # Only a prompt clearer than the best so far is followed to its end.
        found = greedy(model, watch, prompt, best[2] if best else MIN_LOGIT_MARGIN, avoid)
        if found:
            best = (prompt, *found)
            print(f"prompt {n}: margins: logits {found[1]:.1e} of the range, router"
                  f" {watch.margin:.1e}", flush=True)  # fmt: skip
    return best


def make_demo(checkpoint: Path, into: Path, tries: int = 24) -> None:
    """Vectors for a trained checkpoint: its weights are given, only the prompt is chosen."""
    cfg = json.loads((checkpoint / "config.json").read_text())
    model = load(checkpoint)
    watch = RouterWatch(model, MIN_ROUTER_MARGIN_DEMO)
    length = min(220, cfg["max_position_embeddings"] - GREEDY_TOKENS)
    unwanted = unwanted_ids(checkpoint, cfg)
    bos = cfg.get("bos_token_id")
    start = bos if bos is not None else min(set(range(cfg["vocab_size"])) - unwanted)
    prompts = [sample_prompt(model, start, length, unwanted, seed) for seed in range(tries)]
    # A continuation without an end token, if there is one.
    best = clearest_prompt(model, watch, prompts, avoid=unwanted)
    best = best or clearest_prompt(model, watch, prompts, avoid=set())
    if best is None:
        raise SystemExit(f"{checkpoint}: no prompt without a near-tie among {tries}")
    positions = tuple(p for p in (0, 63, 64, 128) if p < length - 1) + (length - 1,)
    write_vectors(into, vectors(model, *best[:2], positions))
    print(f"{into}: {length} prompt tokens, {len(set(best[1]))} distinct ids")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the oracle vectors.")
    parser.add_argument("names", nargs="*", help="tiny models (default: all)")
    parser.add_argument("--check", action="store_true", help="recompute and compare, write nothing")
    parser.add_argument("--demo", type=Path, metavar="CHECKPOINT", help="an existing checkpoint")
    parser.add_argument("--out", type=Path, default=HERE / "demo", help="where --demo writes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    unknown = set(args.names) - {tiny.name for tiny in MODELS}
    if unknown:
        parser.error(f"no such model: {', '.join(sorted(unknown))}")
    if args.demo:
        check(args.out, args.demo) if args.check else make_demo(args.demo, args.out)
        return
    for tiny in MODELS:
        if not args.names or tiny.name in args.names:
            check(tiny.folder, tiny.folder) if args.check else make_tiny(tiny)


if __name__ == "__main__":
    main()
