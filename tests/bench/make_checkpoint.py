#!/usr/bin/env python3
"""Write a checkpoint folder of a model's shapes whose weights are all zero, to time loading.

    make_checkpoint.py config/models/deepseek-v2-lite.json /tmp/v2-lite [--fp8] [--shard-gb 8]

The files are sparse: they take no room on disk until something is written, but reading them costs
what reading any file in the page cache does (read them once before timing). --fp8 stores matrices
as DeepSeek-V3 does, with a scale for each block of 128 x 128.
"""

import argparse
import json
import struct
from pathlib import Path

BLOCK = 128
SIZES = {"BF16": 2, "F32": 4, "F8_E4M3": 1}


def tensors(c: dict) -> dict[str, list[int]]:
    """The names of released checkpoints and their shapes."""
    d, heads, out = c["hidden_size"], c["num_attention_heads"], {}
    nope, rope, v = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    q_lora, kv_lora = c["q_lora_rank"], c["kv_lora_rank"]

    def mlp(prefix: str, width: int) -> None:
        out[f"{prefix}gate_proj.weight"] = [width, d]
        out[f"{prefix}up_proj.weight"] = [width, d]
        out[f"{prefix}down_proj.weight"] = [d, width]

    out["model.embed_tokens.weight"] = [c["vocab_size"], d]
    for n in range(c["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        attention = layer + "self_attn."
        out[layer + "input_layernorm.weight"] = [d]
        if q_lora:
            out[attention + "q_a_proj.weight"] = [q_lora, d]
            out[attention + "q_a_layernorm.weight"] = [q_lora]
            out[attention + "q_b_proj.weight"] = [heads * (nope + rope), q_lora]
        else:
            out[attention + "q_proj.weight"] = [heads * (nope + rope), d]
        out[attention + "kv_a_proj_with_mqa.weight"] = [kv_lora + rope, d]
        out[attention + "kv_a_layernorm.weight"] = [kv_lora]
        out[attention + "kv_b_proj.weight"] = [heads * (nope + v), kv_lora]
        out[attention + "o_proj.weight"] = [d, heads * v]
        out[layer + "post_attention_layernorm.weight"] = [d]
        if not c.get("n_routed_experts") or n < c["first_k_dense_replace"]:
            mlp(layer + "mlp.", c["intermediate_size"])
            continue
        out[layer + "mlp.gate.weight"] = [c["n_routed_experts"], d]
        if c["model_type"] != "deepseek_v2":
            out[layer + "mlp.gate.e_score_correction_bias"] = [c["n_routed_experts"]]
        for expert in range(c["n_routed_experts"]):
            mlp(f"{layer}mlp.experts.{expert}.", c["moe_intermediate_size"])
        mlp(layer + "mlp.shared_experts.", c["moe_intermediate_size"] * c["n_shared_experts"])
    out["model.norm.weight"] = [d]
    if not c.get("tie_word_embeddings"):
        out["lm_head.weight"] = [c["vocab_size"], d]
    return out


def stored(shapes: dict[str, list[int]], fp8: bool) -> dict[str, tuple[str, list[int]]]:
    out = {}
    for name, shape in shapes.items():
        out[name] = ("BF16", shape)
        if fp8 and name.endswith(("_proj.weight", "_mqa.weight")):
            out[name] = ("F8_E4M3", shape)
            out[f"{name}_scale_inv"] = ("F32", [-(-size // BLOCK) for size in shape])
    return out


def write_shard(path: Path, items: dict[str, tuple[str, list[int]]]) -> None:
    header, at = {}, 0
    for name, (dtype, shape) in items.items():
        size = SIZES[dtype]
        for dim in shape:
            size *= dim
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fp8", action="store_true")
    parser.add_argument("--shard-gb", type=float, default=8)
    args = parser.parse_args()

    config = json.loads(args.config.read_text())
    if args.fp8:
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [BLOCK] * 2}
    shards, size = [{}], 0.0
    for name, (dtype, shape) in stored(tensors(config), args.fp8).items():
        if size > args.shard_gb * 1e9:
            shards.append({})
            size = 0
        shards[-1][name] = (dtype, shape)
        size += SIZES[dtype] * shape[0] * (shape[1] if len(shape) > 1 else 1)
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / "config.json").write_text(json.dumps(config))
    names = {}
    for number, items in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_shard(args.folder / file, items)
        names |= dict.fromkeys(items, file)
    index = {"metadata": {}, "weight_map": names}
    (args.folder / "model.safetensors.index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    main()
