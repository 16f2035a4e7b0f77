#!/usr/bin/env python3
"""Make the oracle vectors of the families that are not DeepSeek's own, as make_logits.py does.

    make_families.py                 every model below, into tiny/<name>/
    make_families.py minicpm3 axk1   only these
    make_families.py --check         recompute, write nothing, fail on a difference

Weights are drawn under DeepSeek's names (`random_tensors`) and stored as the family's released
checkpoints have them: its keys of config.json, names, layout of experts, and scales. The oracle
reads the stored bytes back, undoes that (`Family.load`), and runs transformers' class. Where that
class and the model differ, the difference is made here, and said:

- sarvam_mla: transformers 5.17 has no class; Sarvam's own is DeepSeek-V3's with other keys.
- mistral4, mistral_large_3: Mistral4Attention multiplies the softmax scale by YaRN's mscale^2;
  the models are trained without it (their params.json: "apply_scale": false).
- kimi_k25: its text model alone, which is DeepSeek-V3's.
"""

import argparse
import json
import math
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from make_logits import (
    BOS, EOS, FIRST_TEXT_ID, FP8_MAX, GREEDY_TOKENS, HERE, MIN_LOGIT_MARGIN, MIN_ROUTER_MARGIN,
    PROMPTS_PER_SEED, RouterWatch, Tensors, config, greedy, healthy, lively, random_tensors,
    vectors, without_experts, write_checkpoint, write_vectors, yarn,
)  # fmt: skip
from safetensors.torch import load_file, save_file
from transformers.utils import logging

# ---- names and layouts --------------------------------------------------------------------------

MISTRAL = [
    ("model.embed_tokens.", "tok_embeddings."), ("model.norm.", "norm."), ("lm_head.", "output."),
    ("model.layers.", "layers."), ("input_layernorm.", "attention_norm."),
    ("post_attention_layernorm.", "ffn_norm."), ("self_attn.q_a_proj.", "attention.wq_a."),
    ("self_attn.q_a_layernorm.", "attention.q_a_norm."), ("self_attn.q_b_proj.", "attention.wq_b."),
    ("self_attn.kv_a_proj_with_mqa.", "attention.wkv_a_with_mqa."),
    ("self_attn.kv_a_layernorm.", "attention.kv_a_norm."),
    ("self_attn.kv_b_proj.", "attention.wkv_b."), ("self_attn.o_proj.", "attention.wo."),
    ("mlp.experts.", "experts."), ("mlp.shared_experts.", "shared_experts."),
    ("mlp.gate.weight", "gate.weight"), ("mlp.gate_proj.", "feed_forward.w1."),
    ("mlp.up_proj.", "feed_forward.w3."), ("mlp.down_proj.", "feed_forward.w2."),
    ("gate_proj.", "w1."), ("up_proj.", "w3."), ("down_proj.", "w2."),
]  # fmt: skip


def renamed(tensors: Tensors, rules: list[tuple[str, str]]) -> Tensors:
    out = {}
    for name, value in tensors.items():
        for old, new in rules:
            name = name.replace(old, new)
        out[name] = value
    return out


def expert_names(tensors: Tensors) -> dict[str, int]:
    """For each prefix "...mlp.experts." the number of experts."""
    counts: dict[str, int] = {}
    for name in tensors:
        if found := re.match(r"(.*mlp\.experts\.)(\d+)\.", name):
            counts[found[1]] = max(counts.get(found[1], 0), int(found[2]) + 1)
    return counts


def fused(tensors: Tensors) -> Tensors:
    """All experts of a layer in one tensor, gate over up, as transformers 5 keeps them."""
    out = {name: value for name, value in tensors.items() if ".mlp.experts." not in name}
    for prefix, n in expert_names(tensors).items():
        gate, up, down = (
            torch.stack([tensors[f"{prefix}{e}.{part}_proj.weight"] for e in range(n)])
            for part in ("gate", "up", "down")
        )
        out[prefix + "gate_up_proj"] = torch.cat([gate, up], 1)
        out[prefix + "down_proj"] = down
    return out


def one_scale(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """E4M3 with one scale for each matrix."""
    scale = value.abs().amax((-2, -1), keepdim=True).float() / FP8_MAX
    return (value / scale).to(torch.float8_e4m3fn), scale


def quantised(tensors: Tensors, suffix: str) -> Tensors:
    out: Tensors = {}
    for name, value in tensors.items():
        linear = "_proj" in name and "norm" not in name
        if not linear:
            out[name] = value.to(torch.bfloat16)
            continue
        stored, scale = one_scale(value)
        out[name] = stored
        whole = name.removesuffix("weight")
        out[whole + suffix if whole != name else name + "_scale_inv"] = (
            scale if value.ndim == 3 else scale.reshape(())
        )
    return out


def plain(tensors: Tensors) -> Tensors:
    """FP8 with one scale a matrix multiplied out, all to F32."""
    scales = {n: v for n, v in tensors.items() if n.endswith("scale_inv") or "qscale" in n}
    out: Tensors = {}
    for name, value in tensors.items():
        if name in scales:
            continue
        out[name] = value.float()
        for scale in (name + "_scale_inv", name.removesuffix("weight") + "qscale_weight"):
            if scale in scales:
                out[name] *= scales[scale]
    return out


# ---- the families -------------------------------------------------------------------------------


@dataclass
class Family:
    """`full`: the configuration in DeepSeek's terms; `released`: as the family's file has it."""

    name: str
    full: dict
    released: dict
    oracle: dict  # config.json for transformers' class
    draw: Callable[[dict, dict, torch.Generator], Tensors] = random_tensors
    store: Callable[[Tensors], Tensors] = lambda tensors: tensors
    restore: Callable[[Tensors], Tensors] = lambda tensors: tensors
    widen: Callable[[Tensors], Tensors] = plain
    adjust: Callable[[torch.nn.Module], None] = lambda model: None
    dtype: torch.dtype | None = torch.float32  # None: `store` chooses
    shards: int = 1
    config_file: str = "config.json"
    weights: str = "model"
    extra: Tensors = field(default_factory=dict)  # tensors that have no place in the graph
    prompt_len: int = 97
    positions: tuple[int, ...] = (0, 31, 32, 63, 64, 96)
    gains: dict = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return HERE / "tiny" / self.name

    def write(self, rng: torch.Generator) -> None:
        tensors = self.store(self.draw(self.full, self.gains, rng)) | self.extra
        if self.dtype:
            tensors = {n: v.to(self.dtype) for n, v in tensors.items()}
        tensors = {n: v.contiguous() for n, v in tensors.items()}
        write_checkpoint(self.folder, self.released, tensors, self.shards)
        (self.folder / "config.json").rename(self.folder / self.config_file)
        if self.weights != "model":
            for file in list(self.folder.glob("model*")):
                name = file.name.replace("model", self.weights, 1)
                if file.suffix == ".json":
                    file.write_text(file.read_text().replace('"model-', f'"{self.weights}-'))
                file.rename(self.folder / name)

    def finish(self, tokens: list[int]) -> bool:
        """Write what other vectors belong to prompt and continuation; False: they won't do."""
        return True

    def check(self, tokens: list[int]) -> float:
        """The largest difference of these others from what they would be made now."""
        return 0.0

    def stored(self) -> Tensors:
        """What the files hold, in F32, by their names."""
        tensors: Tensors = {}
        for file in self.folder.glob("*.safetensors"):
            tensors |= load_file(file)
        for name in self.extra:
            del tensors[name]
        return self.widen(tensors)

    def load(self) -> torch.nn.Module:
        tensors = self.restore(self.stored())
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            (folder / "config.json").write_text(json.dumps(self.oracle))
            save_file({n: v.contiguous() for n, v in tensors.items()},
                      folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
            kind = getattr(transformers, self.oracle["architectures"][0])
            model, info = kind.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
            )
        wrong = {key: value for key, value in info.items() if value}
        if wrong:
            raise SystemExit(f"{self.name}: transformers does not take this whole: {wrong}")
        if expert_names(self.restore(tensors)) or "n_routed_experts" in self.oracle:
            model.set_experts_implementation("eager")
        self.adjust(model)
        return model.eval()


def drop(full: dict, *keys: str, **more) -> dict:
    return dict(sorted(({k: v for k, v in full.items() if k not in keys} | more).items()))


def no_mscale(model: torch.nn.Module) -> None:
    for layer in model.model.layers:
        layer.self_attn.scaling = layer.self_attn.qk_head_dim**-0.5


def mistral4(factor: float, original: int, **changes) -> tuple[dict, dict]:
    """(DeepSeek's terms, mistral4's config.json)."""
    full = config("v3", **(dict(
        n_group=1, topk_group=1, topk_method="greedy", scoring_func="softmax",
        routed_scaling_factor=1.0, first_k_dense_replace=0, n_routed_experts=8,
        num_experts_per_tok=2, max_position_embeddings=4096, rms_norm_eps=1e-6,
    ) | changes))  # fmt: skip
    part = full["qk_rope_head_dim"] / (full["qk_rope_head_dim"] + full["qk_nope_head_dim"])
    rope = {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": factor, "llama_4_scaling_beta": 0.1,
        "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": original,
        "partial_rotary_factor": part, "rope_theta": 10000.0, "rope_type": "yarn", "type": "yarn",
    }  # fmt: skip
    released = drop(full, "rope_scaling", "rope_theta", "scoring_func", "topk_method",
                    "moe_layer_freq", "num_nextn_predict_layers", architectures=None,
                    model_type="mistral4", rope_parameters=rope)  # fmt: skip
    return full, released


def named_mistral4(released: dict, **more) -> dict:
    return released | {"architectures": ["Mistral4ForCausalLM"]} | more


def params_json(full: dict, factor: float, original: int) -> dict:
    """Mistral's own spelling of the configuration."""
    return {
        "dim": full["hidden_size"], "n_layers": full["num_hidden_layers"],
        "head_dim": full["v_head_dim"], "hidden_dim": full["intermediate_size"],
        "n_heads": full["num_attention_heads"], "n_kv_heads": full["num_attention_heads"],
        "rope_theta": full["rope_theta"], "norm_eps": full["rms_norm_eps"],
        "vocab_size": full["vocab_size"], "tied_embeddings": False,
        "max_position_embeddings": full["max_position_embeddings"],
        "q_lora_rank": full["q_lora_rank"], "qk_rope_head_dim": full["qk_rope_head_dim"],
        "qk_nope_head_dim": full["qk_nope_head_dim"], "kv_lora_rank": full["kv_lora_rank"],
        "v_head_dim": full["v_head_dim"], "model_type": "transformer",
        "quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"},
        "yarn": {"original_max_position_embeddings": original, "factor": factor,
                 "apply_scale": False, "beta": 32, "alpha": 1},
        "moe": {"expert_parallel": 1, "expert_model_parallel": 1, "route_every_n": 1,
                "first_k_dense_replace": full["first_k_dense_replace"],
                "num_experts": full["n_routed_experts"],
                "num_experts_per_tok": full["num_experts_per_tok"], "num_expert_groups": 1,
                "num_expert_groups_per_tok": 1, "routed_scale": full["routed_scaling_factor"],
                "expert_hidden_dim": full["moe_intermediate_size"],
                "num_shared_experts": full["n_shared_experts"]},
        "llama_4_scaling": {"original_max_position_embeddings": original, "beta": 0.1},
        "vision_encoder": {"image_token_id": 10, "hidden_size": 64},
    }  # fmt: skip


def minicpm3(scaling: dict, scale: dict, **changes) -> Family:
    full = without_experts(config("v3", **(dict(
        first_k_dense_replace=9, intermediate_size=96, rms_norm_eps=1e-5, num_attention_heads=4,
        kv_lora_rank=16, num_hidden_layers=3,
    ) | changes)))  # fmt: skip
    del full["first_k_dense_replace"]
    released = drop(full, model_type="minicpm3", architectures=["MiniCPM3ForCausalLM"],
                    rope_scaling=scaling, eos_token_id=[EOS], **scale)  # fmt: skip
    name = "minicpm3" if full["tie_word_embeddings"] else "minicpm3_scaled"
    if full["v_head_dim"] == full["hidden_size"] // full["num_attention_heads"]:
        del released["v_head_dim"]  # as in the released checkpoint
    draw = full | {"first_k_dense_replace": 9}
    # The factor follows from the two lengths; only transformers' yarn helper wants to see it.
    factor = full["max_position_embeddings"] / scaling["original_max_position_embeddings"]
    oracle = released | {"rope_scaling": {"factor": factor} | scaling}
    # Tied embeddings are drawn small, or each token would foretell itself.
    gains = dict(embed=0.08, value=3.0, ffn=3.0) if full["tie_word_embeddings"] else {}
    return Family(name, draw, released, oracle, gains=gains)


def dual_tensors(cfg: dict, gains: dict, rng: torch.Generator) -> Tensors:
    """LongCat-Flash: `cfg` has its single layers, all dense; then experts for each pair."""
    out = random_tensors(cfg | {"first_k_dense_replace": 99}, gains, rng)
    routed = cfg["n_routed_experts"]
    pairs = cfg | {"num_hidden_layers": cfg["num_hidden_layers"] // 2, "first_k_dense_replace": 0}
    # The router has a row for each identity expert; they have no weights.
    more = pairs | {"n_routed_experts": routed + cfg["zero_expert_num"], "n_shared_experts": 1}
    for name, value in random_tensors(more, gains, rng).items():
        found = re.match(r"model\.layers\.(\d+)\.mlp\.(gate\.|experts\.(\d+))", name)
        if found and int(found[3] or 0) < routed:
            out[f"pair.{found[1]}.{name.split('.', 3)[3]}"] = value
    return out


def longcat_names(tensors: Tensors) -> Tensors:
    out: Tensors = {}
    for name, value in tensors.items():
        if found := re.match(r"pair\.(\d+)\.mlp\.(.*)", name):
            part = found[2].replace("gate.weight", "router.classifier.weight")
            part = part.replace("gate.e_score", "router.e_score")
            name = f"model.layers.{found[1]}.mlp.{part}"
        elif found := re.match(r"model\.layers\.(\d+)\.(\w+)\.(.*)", name):
            layer, half = divmod(int(found[1]), 2)
            block = found[2].replace("mlp", "mlps")
            name = f"model.layers.{layer}.{block}.{half}.{found[3]}"
        out[name] = value
    return out


def longcat_experts(zero: int) -> Callable[[Tensors], Tensors]:
    def restore(tensors: Tensors) -> Tensors:
        """transformers has (unused) gates and ups of identity experts too."""
        out = fused(tensors)
        for name in [n for n in out if n.endswith("experts.gate_up_proj")]:
            out[name] = torch.cat([out[name], torch.zeros(zero, *out[name].shape[1:])])
        return out

    return restore


def longcat(name: str, zero: int, gains: dict, **changes) -> Family:
    full = config("v3", **(dict(
        hidden_size=48, num_hidden_layers=4, q_lora_rank=24, n_group=1, topk_group=1,
        n_routed_experts=8, num_experts_per_tok=3, routed_scaling_factor=6.0, rms_norm_eps=1e-5,
        rope_theta=1e7,
    ) | changes)) | {"zero_expert_num": zero}  # fmt: skip
    keep = ("attention_bias attention_dropout bos_token_id eos_token_id hidden_size kv_lora_rank"
            " max_position_embeddings n_routed_experts num_attention_heads q_lora_rank"
            " qk_nope_head_dim qk_rope_head_dim rms_norm_eps rope_theta routed_scaling_factor"
            " tie_word_embeddings torch_dtype use_cache v_head_dim vocab_size zero_expert_num")
    released = {k: full[k] for k in keep.split()} | {
        "architectures": ["LongcatFlashForCausalLM"], "model_type": "longcat_flash",
        "attention_method": "MLA", "mla_scale_q_lora": True, "mla_scale_kv_lora": True,
        "num_layers": full["num_hidden_layers"] // 2, "ffn_hidden_size": full["intermediate_size"],
        "expert_ffn_hidden_size": full["moe_intermediate_size"], "zero_expert_type": "identity",
        "moe_topk": full["num_experts_per_tok"],
    }  # fmt: skip
    released = dict(sorted(released.items()))
    oracle = released | {"head_dim": full["qk_rope_head_dim"]}  # 64 otherwise, as released
    return Family(name, full, released, oracle, draw=dual_tensors, store=longcat_names,
                  restore=longcat_experts(zero), gains=gains)  # fmt: skip


def axk1(name: str, **changes) -> Family:
    full = config("v3", n_routed_experts=16, **changes)
    released = drop(full, "rope_interleave", model_type="axk1", architectures=["AXK1ForCausalLM"])

    def draw(cfg: dict, gains: dict, rng: torch.Generator) -> Tensors:
        out = random_tensors(cfg, gains, rng)
        for layer in range(cfg["first_k_dense_replace"], cfg["num_hidden_layers"]):
            norm = torch.exp(0.25 * torch.randn(cfg["hidden_size"], generator=rng))
            out[f"model.layers.{layer}.post_mlp_layernorm.weight"] = norm
        return out

    return Family(name, full, released, released, draw=draw)


def sarvam(name: str, groups: int, **changes) -> Family:
    full = config("v3", q_lora_rank=None, n_group=groups, **changes)
    scaling = full["rope_scaling"] | {"type": "deepseek_yarn"}
    released = drop(
        full, "n_routed_experts", "n_shared_experts", "scoring_func", "q_lora_rank", "rope_scaling",
        "num_nextn_predict_layers", "moe_layer_freq", "topk_method", "norm_topk_prob",
        architectures=["SarvamMLAForCausalLM"], model_type="sarvam_mla",
        num_experts=full["n_routed_experts"], num_shared_experts=full["n_shared_experts"],
        score_function="sigmoid", moe_router_enable_expert_bias=True, use_qk_norm=True,
        rope_scaling=scaling, head_dim=full["kv_lora_rank"] + full["qk_rope_head_dim"],
        q_head_dim=full["qk_nope_head_dim"] + full["qk_rope_head_dim"],
    )  # fmt: skip
    if groups > 1:  # what the released file leaves to its code: groups of eight, two kept
        released = drop(released, "n_group", "topk_group")
    return Family(name, full, released, full)


def all_families() -> list[Family]:
    small, small_json = mistral4(128.0, 32, num_attention_heads=4, kv_lora_rank=24)
    dense, dense_json = mistral4(16.0, 64, first_k_dense_replace=1, q_lora_rank=None,
                                 v_head_dim=32, rms_norm_eps=1e-5)  # fmt: skip
    large, large_json = mistral4(36.0, 32, first_k_dense_replace=1, num_attention_heads=3,
                                 kv_lora_rank=40)  # fmt: skip
    prefix = [("model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")]
    back = [(new, old) for old, new in prefix]
    kimi = config("v3", n_group=1, topk_group=1, routed_scaling_factor=2.827, rope_theta=50000.0,
                  rope_scaling=yarn(32, 64, 1.0, 1.0, beta_fast=1.0), n_routed_experts=8,
                  num_experts_per_tok=3, max_position_embeddings=2048)  # fmt: skip
    youtu = without_experts(config(
        "v3", model_type="youtu", architectures=["YoutuForCausalLM"], first_k_dense_replace=3,
        num_hidden_layers=3, q_lora_rank=None, kv_lora_rank=24, v_head_dim=32,
        num_attention_heads=3, rope_scaling=yarn(8, 64, 1.0, 0.7), tie_word_embeddings=False,
        torch_dtype="bfloat16", rms_norm_eps=1e-5,
    ))  # fmt: skip
    vision = {"vision_tower.encoder.blocks.0.norm0.weight": torch.ones(8)}

    def mistral_back(tensors: Tensors) -> Tensors:
        # Longest first, so that "norm." is not found inside "ffn_norm.".
        rules = [(re.compile(r"(^|(?<=\.))" + re.escape(new)), old) for old, new in MISTRAL[:18]]
        out = {}
        for name, value in tensors.items():
            for pattern, old in rules:
                name = pattern.sub(old, name)
            for new, old in (("w1.", "gate_proj."), ("w3.", "up_proj."), ("w2.", "down_proj.")):
                name = name.replace(".feed_forward." + new, ".mlp." + old)
                name = re.sub(rf"(experts\.(\d+\.)?){re.escape(new)}", rf"\1{old}", name)
            out[name] = value
        return fused(out)

    return [
        # Mistral Small 4 as released: inside a model with images, experts fused.
        Family(
            "mistral4", small,
            {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3",
             "bos_token_id": BOS, "eos_token_id": EOS, "tie_word_embeddings": False,
             "text_config": small_json, "vision_config": {"model_type": "pixtral"}},
            named_mistral4(small_json), store=lambda t: renamed(fused(t), prefix),
            restore=lambda t: renamed(t, back), adjust=no_mscale, dtype=torch.bfloat16, shards=3,
            extra={"vision_tower.ln_pre.weight": torch.ones(8)},
        ),
        # FP8 with one scale a matrix; a dense layer, no q_lora.
        Family(
            "mistral4_fp8", dense,
            named_mistral4(dense_json, quantization_config={
                "activation_scheme": "static", "modules_to_not_convert": ["lm_head"],
                "quant_method": "fp8", "weight_block_size": None}),
            named_mistral4(dense_json), store=lambda t: quantised(fused(t), "weight_scale_inv"),
            adjust=no_mscale, dtype=None,
        ),
        # Mistral Large 3: params.json, Mistral's names, FP8 with their scales.
        Family(
            "mistral_large_3", large, params_json(large, 36.0, 32), named_mistral4(large_json),
            store=lambda t: renamed(quantised(t, "qscale_weight"), MISTRAL), restore=mistral_back,
            adjust=no_mscale, dtype=None, shards=2, config_file="params.json",
            weights="consolidated",
        ),
        # MiniCPM3: short and long factors differ; only the short ones count.
        minicpm3(
            {"type": "longrope", "original_max_position_embeddings": 1024,
             "short_factor": [1.0 + 0.02 * i for i in range(8)],
             "long_factor": [1.0 + 0.5 * i for i in range(8)]},
            {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 128},
            tie_word_embeddings=True, qk_nope_head_dim=24, v_head_dim=8,
        ),
        # A context beyond the original one scales cos and sin; a head of its own, no q_lora.
        minicpm3(
            {"rope_type": "longrope", "original_max_position_embeddings": 64, "factor": 16.0,
             "short_factor": [1.0 + 0.3 * i for i in range(8)],
             "long_factor": [1.0 + 0.3 * i for i in range(8)]},
            {"scale_emb": 3.5, "scale_depth": 2.5, "dim_model_base": None},
            v_head_dim=24, q_lora_rank=None, num_hidden_layers=2, rope_theta=5000.0,
            rms_norm_eps=0.02,
        ),
        longcat("longcat_flash", 4, dict(router=3.0, router_bias=0.1)),
        longcat("longcat_flash_wide", 3, {}, num_hidden_layers=2, v_head_dim=32, kv_lora_rank=16,
                num_attention_heads=3, num_experts_per_tok=5, n_routed_experts=6),
        axk1("axk1", rope_scaling=yarn(32, 64, 1.0, 1.0)),
        axk1("axk1_deep", num_hidden_layers=4, first_k_dense_replace=2, n_group=2, topk_group=1,
             num_experts_per_tok=3, rms_norm_eps=1e-5, v_head_dim=24),
        sarvam("sarvam_mla", 3, n_routed_experts=24, rope_scaling=yarn(40, 32, 1.0, 1.0)),
        sarvam("sarvam_mla_one_group", 1, topk_group=1, n_routed_experts=10, num_experts_per_tok=3,
               n_shared_experts=2, rope_scaling=yarn(16, 64, 1.0, 1.0), num_attention_heads=3),
        # Kimi-K2.5: the text model of one with images.
        Family(
            "kimi_k25", kimi,
            {"architectures": ["KimiK25ForConditionalGeneration"], "model_type": "kimi_k25",
             "bos_token_id": BOS, "eos_token_id": EOS, "tie_word_embeddings": True,
             "text_config": kimi | {"model_type": "kimi_k2"},
             "vision_config": {"model_type": "kimi_k25_vision"}},
            kimi, store=lambda t: renamed(t, prefix), restore=lambda t: renamed(t, back),
            dtype=torch.bfloat16, shards=2, extra=vision,
        ),
        # Youtu-LLM by its other name, with a head of its own, yarn and no q_lora.
        Family(
            "youtu_llm", youtu, drop(youtu, model_type="youtu_llm"), youtu, dtype=torch.bfloat16,
            shards=2,
        ),
    ]  # fmt: skip


# ---- choosing weights and prompts ---------------------------------------------------------------


class Watch(RouterWatch):
    """Routers without groups too: softmax with (LongCat-Flash) and without (Mistral) a bias."""

    def observe(self, router, inputs, output) -> None:
        kind = type(router).__name__
        if kind not in ("Mistral4TopkRouter", "LongcatFlashTopkRouter"):
            super().observe(router, inputs, output)
            return
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        weight = router.weight if kind.startswith("Mistral") else router.classifier.weight
        scores = (x @ weight.T).softmax(-1)
        ranked = scores + getattr(router, "e_score_correction_bias", 0)
        self.narrow(ranked, router.top_k)
        self.bias_matters |= self.differ(scores, output[-1])
        assert not self.differ(ranked, output[-1])


def acceptable(family: Family, watch: Watch, ids: list[int]) -> bool:
    grouped = watch.routers and family.full.get("topk_group", 1) < family.full.get("n_group", 1)
    biased = watch.routers and family.full.get("topk_method") == "noaux_tc"
    return lively(ids) and (not grouped or watch.groups_matter) and (
        not biased or watch.bias_matters
    )  # fmt: skip


@torch.no_grad()
def likely(model: torch.nn.Module, prompts: list[list[int]]) -> list[list[int]]:
    """The prompts whose greedy continuation, all computed at once, is clear and lively."""
    step, cache, ids = torch.tensor(prompts), None, []
    narrowest = torch.full((len(prompts),), math.inf)
    while len(ids) < GREEDY_TOKENS:
        out = model(step, past_key_values=cache, use_cache=True)
        cache, logits = out.past_key_values, out.logits[:, -1]
        top = logits.topk(2)[0]
        margin = (top[:, 0] - top[:, 1]) / (logits.amax(-1) - logits.amin(-1))
        narrowest = torch.minimum(narrowest, margin)
        ids.append(logits.argmax(-1))
        step = ids[-1][:, None]
    rows = torch.stack(ids, 1).tolist()
    clear = [m >= MIN_LOGIT_MARGIN for m in narrowest.tolist()]
    return [p for p, row, ok in zip(prompts, rows, clear, strict=True)
            if ok and lively(row) and not {BOS, EOS} & set(row)]  # fmt: skip


def make(family: Family, first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 50):
        rng = torch.Generator().manual_seed(seed)
        family.write(rng)
        model = family.load()
        watch = Watch(model, MIN_ROUTER_MARGIN)
        vocab = family.full["vocab_size"]
        draws = [
            [BOS]
            + torch.randint(FIRST_TEXT_ID, vocab, (family.prompt_len - 1,), generator=rng).tolist()
            for _ in range(PROMPTS_PER_SEED)
        ]
        ok, text = healthy(model, draws[0])
        print(f"{family.name}: seed {seed}: {text}", flush=True)
        for n, prompt in enumerate(likely(model, draws) if ok else []):
            found = greedy(model, watch, prompt, MIN_LOGIT_MARGIN, avoid={BOS, EOS})
            if found and acceptable(family, watch, found[0]) and family.finish(prompt + found[0]):
                write_vectors(family.folder, vectors(model, prompt, found[0], family.positions))
                size = sum(f.stat().st_size for f in family.folder.iterdir())
                print(f"{family.name}: prompt {n}, {len(set(found[0]))} distinct ids, margins:"
                      f" logits {found[1]:.1e} of the range, router {watch.margin:.1e};"
                      f" {size // 1000} kB", flush=True)  # fmt: skip
                return
    raise SystemExit(f"{family.name}: no prompt without a near-tie found")


def check(family: Family) -> None:
    expected = json.loads((family.folder / "expected.json").read_text())
    positions = expected["logits"]["positions"]
    old = np.fromfile(family.folder / "expected.f32", "<f4").reshape(len(positions), -1)
    new = vectors(family.load(), expected["prompt"], expected["greedy"], positions)["values"]
    others = family.check(expected["prompt"] + expected["greedy"])
    worst = max(float(np.abs(new - old).max()), others)
    print(f"{family.name}: largest difference {worst:.1e}", flush=True)
    if worst > 1e-4:
        raise SystemExit(f"{family.folder}: the vectors do not come from this checkpoint")


def main(families: list[Family], first_seed: int, what: str) -> None:
    parser = argparse.ArgumentParser(description=f"Make the oracle vectors of {what}.")
    parser.add_argument("names", nargs="*", help="models (default: all)")
    parser.add_argument("--check", action="store_true", help="recompute and compare, write nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    unknown = set(args.names) - {family.name for family in families}
    if unknown:
        parser.error(f"no such model: {', '.join(sorted(unknown))}")
    for number, family in enumerate(families):
        if args.names and family.name not in args.names:
            continue
        if args.check:
            check(family)
        else:
            make(family, first_seed + 1000 * number)


if __name__ == "__main__":
    main(all_families(), 100000, "more families")
