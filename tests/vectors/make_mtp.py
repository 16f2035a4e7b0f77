#!/usr/bin/env python3
"""Make the oracle vectors of checkpoints with a layer of multi-token prediction (DeepSeek-V3's
report, section 2.2), as make_families.py does those without.

    make_mtp.py              every model below, into tiny/<name>/
    make_mtp.py mtp_v3       only these
    make_mtp.py --check      recompute, write nothing, fail on a difference

transformers 5.17 leaves out these layers. What surrounds the decoder layer is therefore put
together here, out of F.linear and transformers' own RMSNorm:

    x = eh_proj [enorm(embedding of the token at p + 1); hnorm(hidden state at p)]

and the rest - decoder layer, shared_head.norm, shared_head.head - is a model of transformers' class
with that one layer, which takes x as its embeddings at positions 0, 1, 2, ... A hidden state is
that after the last norm: the model's or, where the layer goes on from its own guess, the layer's.
Order and norms are those of vLLM's deepseek_mtp.py and SGLang's deepseek_nextn.py; vLLM alone has 0
in place of the embedding at position 0.

drafts.json beside expected.json has

    {"positions": [p, ...], "chain": {"after": p, "tokens": [ids]}, "values": "drafts.f32"}

and drafts.f32 a row of logits for each position p of prompt and continuation, after hidden states
of the model up to p; then one for each token of the chain, which takes up the layer's guess after
position `after`, and goes on alone from there.
"""

import json
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from make_families import Family, Watch, longcat, main, renamed
from make_logits import MIN_ROUTER_MARGIN, Tensors, config, random_tensors, yarn
from make_quantized import fp8

POSITIONS = (0, 31, 32, 63, 64, 95, 96, 97, 111, 112, 113, 120, 160, 223)
CHAIN_AFTER, CHAIN_TOKENS = 112, 4

Rules = list[tuple[str, str]]

# The layer's tensors are called "draft..." here; then in a file, and in a model of one layer.
LONGCAT_RULES = [
    ("draft.shared_head.norm.", "model.mtp.norm."),
    ("draft.embed_tokens.", "model.mtp.embed_tokens."),
    ("draft.enorm.", "model.mtp.layers.0.enorm.m."),
    ("draft.hnorm.", "model.mtp.layers.0.hnorm.m."),
    ("draft.mlp.", "model.mtp.layers.0.transformer_layer.mlp."),
    ("draft.", "model.mtp.layers.0."),
]
ONE_LAYER_RULES = [
    ("draft.shared_head.norm.", "model.norm."),
    ("draft.shared_head.head.", "lm_head."),
    ("draft.embed_tokens.", "model.embed_tokens."),
    ("draft.", "model.layers.0."),
]
BEFORE = ("draft.enorm.weight", "draft.hnorm.weight", "draft.eh_proj.weight")


def inverse(rules: Rules) -> Rules:
    return [(theirs, ours) for ours, theirs in rules]


def draft_tensors(one: dict, gains: dict, vocabulary: dict, rng: torch.Generator) -> Tensors:
    """Random tensors of the layer, and those of the vocabulary that it has of its own."""
    d = one["hidden_size"]
    out = renamed(random_tensors(one, gains, rng), inverse(ONE_LAYER_RULES))
    for part in ("embed_tokens", "shared_head.head"):
        name = f"draft.{part}.weight"
        own = out.pop(name)
        if part in vocabulary:
            out[name] = own if vocabulary[part] is None else vocabulary[part].clone()
    for part in ("enorm", "hnorm"):
        out[f"draft.{part}.weight"] = torch.exp(0.25 * torch.randn(d, generator=rng))
    out["draft.eh_proj.weight"] = torch.randn(d, 2 * d, generator=rng) / (2 * d) ** 0.5
    return out


@dataclass
class Drafting(Family):
    """`one`: config.json of a model of the layer alone. `rules`: the layer's names in the file.
    `scales`: factors on vectors of the layer that transformers' class for it doesn't have."""

    one: dict = field(default_factory=dict)
    rules: Rules = field(default_factory=list)
    scales: dict[str, float] = field(default_factory=dict)

    def by_our_names(self) -> Tensors:
        return renamed(self.stored(), inverse(self.rules))

    def drafter(self) -> tuple[torch.nn.Module, list[torch.Tensor]]:
        """The model of one layer; and what is before it: enorm, hnorm and eh_proj."""
        tensors = self.by_our_names()

        def restore(_: Tensors) -> Tensors:
            layer = {n: v for n, v in tensors.items() if n.startswith("draft.") and n not in BEFORE}
            layer.setdefault("draft.embed_tokens.weight", tensors["model.embed_tokens.weight"])
            layer.setdefault("draft.shared_head.head.weight", tensors["lm_head.weight"])
            for part, factor in self.scales.items():
                layer[f"draft.{part}.weight"] = layer[f"draft.{part}.weight"] * factor
            return renamed(layer, ONE_LAYER_RULES)

        return replace(self, oracle=self.one, restore=restore).load(), [tensors[n] for n in BEFORE]

    @torch.no_grad()
    def drafts(self, tokens: list[int], floor: float) -> tuple[np.ndarray, list[int]] | None:
        """Logits and the chain's tokens; None where a router decides by less than `floor`."""
        model, (enorm, hnorm, eh_proj) = self.drafter()
        watch = Watch(model, floor)
        hidden = self.load().model(torch.tensor([tokens]), use_cache=False).last_hidden_state

        def norm(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            module = type(model.model.norm)(len(weight), eps=self.one["rms_norm_eps"])
            module.weight.copy_(weight)
            return module(x)

        def run(ids: list[int], states: torch.Tensor, cache=None):
            embeds = model.model.embed_tokens(torch.tensor([ids]))
            x = F.linear(torch.cat([norm(enorm, embeds), norm(hnorm, states)], -1), eh_proj)
            with watch.indexers:
                out = model.model(inputs_embeds=x, past_key_values=cache, use_cache=True)
            return out.last_hidden_state, out.past_key_values

        states, _ = run(tokens[1:], hidden[:, :-1])
        rows = [model.lm_head(states[0, p]) for p in POSITIONS]
        n = CHAIN_AFTER + 1
        states, cache = run(tokens[1 : n + 1], hidden[:, :n])
        chain: list[int] = [int(model.lm_head(states[0, -1]).argmax())]
        while len(rows) < len(POSITIONS) + CHAIN_TOKENS:
            states, cache = run(chain[-1:], states[:, -1:], cache)
            rows.append(model.lm_head(states[0, -1]))
            chain.append(int(rows[-1].argmax()))
        if watch.spoiled():
            return None
        return torch.stack(rows).numpy().astype("<f4"), chain[:CHAIN_TOKENS]

    def finish(self, tokens: list[int]) -> bool:
        found = self.drafts(tokens, MIN_ROUTER_MARGIN)
        if found is None:
            return False
        parts = {"positions": list(POSITIONS), "values": "drafts.f32",
                 "chain": {"after": CHAIN_AFTER, "tokens": found[1]}}  # fmt: skip
        lines = [f'"{key}": {json.dumps(value)}' for key, value in parts.items()]
        (self.folder / "drafts.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
        found[0].tofile(self.folder / "drafts.f32")
        return True

    def check(self, tokens: list[int]) -> float:
        values, chain = self.drafts(tokens, 0.0)
        assert json.loads((self.folder / "drafts.json").read_text())["chain"]["tokens"] == chain
        old = np.fromfile(self.folder / "drafts.f32", "<f4").reshape(values.shape)
        return float(np.abs(values - old).max())


def drafting(name: str, base: Family, one: dict, vocabulary: str, rules: Rules, **more) -> Drafting:
    """`base` with a layer more. `vocabulary`: whether its embeddings and head are stored: "none",
    "again" (the model's) or "others"."""

    def draw(cfg: dict, gains: dict, rng: torch.Generator) -> Tensors:
        out = base.draw(cfg, gains, rng)
        again = {"embed_tokens": out["model.embed_tokens.weight"],
                 "shared_head.head": out["lm_head.weight"]}  # fmt: skip
        own = {"none": {}, "again": again, "others": dict.fromkeys(again)}[vocabulary]
        return out | draft_tensors(one, gains, own, rng)

    def store(tensors: Tensors) -> Tensors:
        # eh_proj stays as it is beside FP8, as in released checkpoints.
        join = {n: v for n, v in tensors.items() if n == BEFORE[2]}
        out = base.store({n: v for n, v in tensors.items() if n not in join})
        wide = base.dtype or torch.bfloat16
        return renamed(out | {n: v.to(wide) for n, v in join.items()}, rules)

    def restore(tensors: Tensors) -> Tensors:
        ours = renamed(tensors, inverse(rules))
        return base.restore({n: v for n, v in ours.items() if not n.startswith("draft.")})

    parts = vars(base) | dict(name=name, draw=draw, store=store, restore=restore)
    return Drafting(**parts, one=one, rules=rules, **more)


def deepseek(name: str, base: Family, vocabulary: str) -> Drafting:
    """A layer as the model's others, numbered on."""
    base.released["num_nextn_predict_layers"] = 1
    one = base.oracle | {"num_hidden_layers": 1, "first_k_dense_replace": 0}
    if "mlp_layer_types" in one:
        one["mlp_layer_types"] = ["sparse"]
    rules = [("draft.", f"model.layers.{base.full['num_hidden_layers']}.")]
    return drafting(name, base, one, vocabulary, rules)


def plain(full: dict, **gains: float) -> Family:
    return Family("", full, dict(full), full, gains=gains)


def longcat_drafting(name: str) -> Drafting:
    """One dense layer of single width; its latents are scaled as the model's are."""
    base = longcat(name, 4, dict(router=3.0, router_bias=0.1), num_hidden_layers=2,
                   n_routed_experts=4)  # fmt: skip
    full = base.full
    one = full | {"num_hidden_layers": 1, "first_k_dense_replace": 1}
    scales = {f"self_attn.{part}_a_layernorm": (full["hidden_size"] / full[rank]) ** 0.5
              for part, rank in (("q", "q_lora_rank"), ("kv", "kv_lora_rank"))}  # fmt: skip
    return drafting(name, base, one, "none", LONGCAT_RULES, scales=scales)


def all_models() -> list[Family]:
    small = dict(n_routed_experts=8, num_experts_per_tok=2)
    whole = dict(hidden_size=128, moe_intermediate_size=128, intermediate_size=128,
                 q_lora_rank=128, kv_lora_rank=128)  # fmt: skip
    return [
        # DeepSeek-V3: embeddings and head are stored again.
        deepseek(
            "mtp_v3",
            plain(config("v3", n_group=2, topk_group=1, max_position_embeddings=1280,
                         rope_scaling=yarn(40, 32, 1.0, 1.0), **small), score=1.0),
            "again",
        ),
        # The same in FP8, in whole blocks, which a GPU keeps; eh_proj in bf16.
        deepseek(
            "mtp_v3_fp8",
            fp8("", torch.float32,
                config("v3", n_group=2, topk_group=1, n_routed_experts=4, num_experts_per_tok=1,
                       qk_nope_head_dim=48, v_head_dim=64, torch_dtype="bfloat16", **whole)),
            "none",
        ),
        # GLM-4.7-Flash, with a vocabulary of the layer's own.
        deepseek(
            "mtp_glm4_moe_lite",
            plain(config("v3", model_type="glm4_moe_lite",
                         architectures=["Glm4MoeLiteForCausalLM"], n_group=1, topk_group=1,
                         v_head_dim=40, qk_nope_head_dim=24, routed_scaling_factor=1.8,
                         rms_norm_eps=1e-5, rope_theta=1000000.0, num_attention_heads=3,
                         mlp_layer_types=["dense", "sparse"], **small)),
            "others",
        ),
        # DeepSeek-V3.2: the layer has an indexer.
        deepseek(
            "mtp_v32",
            plain(config("v3", model_type="deepseek_v32", architectures=["DeepseekV32ForCausalLM"],
                         index_topk=40, index_n_heads=8, index_head_dim=32, n_group=2,
                         topk_group=1, **small)),
            "again",
        ),
        longcat_drafting("mtp_longcat"),
    ]  # fmt: skip


if __name__ == "__main__":
    main(all_models(), 300000, "checkpoints with multi-token prediction")
