"""The DeepSeek-V3 graph in PyTorch, for training the demo model on packed documents.

Tokens of many documents lie in one row of T tokens; `starts` marks where documents begin, so
attention never crosses them and every shape is static. The eight experts are small, so all of them
are computed and the unchosen ones weigh zero: exact, and faster than gathering. Weights are float32
masters, rounded to bfloat16 where they are used, as they are when served.

    Network(config)             the module
    Network.logits              the whole model, (T,) ids -> (T, vocab)
    Network.forward             per-token loss, whether the greedy choice was right, expert loads
    export(network)             tensors under the names that Hugging Face uses
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_shared_experts": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.0,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_interleave": True,
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "use_cache": True,
    "torch_dtype": "bfloat16",
}


def linear(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight.to(x.dtype))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(T, d) of any type -> (T, d) bfloat16."""
    x = x.float()
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return (x * weight).to(torch.bfloat16)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Interleaved rope: pairs (x0, x1), (x2, x3), ... x (T, H, 64); cos, sin (T, 1, 32)."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int) -> Tensor:
    """Causal attention inside each document. q, k, v (T, H, D); starts (N+1,) int32."""
    if q.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(q, k, v, starts, starts, longest, longest, window_size=(-1, 0))
    bounds = starts.tolist()
    out = torch.zeros_like(v)
    for a, b in zip(bounds, bounds[1:]):
        if a < b:
            rows = [t[a:b].transpose(0, 1)[None] for t in (q, k, v)]
            part = F.scaled_dot_product_attention(*rows, is_causal=True)
            out[a:b] = part[0].transpose(0, 1)
    return out


def matrix(rows: int, cols: int, gain: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, cols) * gain / math.sqrt(cols))


class Attention(nn.Module):
    """Multi-head Latent Attention in its expanded form, without a query latent."""

    def __init__(self, c: dict):
        super().__init__()
        self.heads, self.eps = c["num_attention_heads"], c["rms_norm_eps"]
        self.nope, self.rope = c["qk_nope_head_dim"], c["qk_rope_head_dim"]
        self.rank, self.v_dim = c["kv_lora_rank"], c["v_head_dim"]
        d = c["hidden_size"]
        self.q_proj = matrix(self.heads * (self.nope + self.rope), d)
        self.kv_a_proj_with_mqa = matrix(self.rank + self.rope, d)
        self.kv_a_layernorm = nn.Parameter(torch.ones(self.rank))
        self.kv_b_proj = matrix(self.heads * (self.nope + self.v_dim), self.rank)
        self.o_proj = matrix(d, self.heads * self.v_dim, 0.1)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, starts: Tensor, longest: int) -> Tensor:
        tokens = x.shape[0]
        q = linear(x, self.q_proj).view(tokens, self.heads, -1)
        q_nope, q_rope = q.split((self.nope, self.rope), -1)
        latent, k_rope = linear(x, self.kv_a_proj_with_mqa).split((self.rank, self.rope), -1)
        latent = rms_norm(latent, self.kv_a_layernorm, self.eps)
        kv = linear(latent, self.kv_b_proj).view(tokens, self.heads, -1)
        k_nope, v = kv.split((self.nope, self.v_dim), -1)
        k_rope = rotate(k_rope[:, None], cos, sin).expand(-1, self.heads, -1)
        q = torch.cat((q_nope, rotate(q_rope, cos, sin)), -1)
        k = torch.cat((k_nope, k_rope), -1)
        v = F.pad(v, (0, q.shape[-1] - self.v_dim))  # flash attention wants one head size
        out = attend(q, k, v, starts, longest)[..., : self.v_dim]
        return linear(out.reshape(tokens, -1), self.o_proj)


class MLP(nn.Module):
    def __init__(self, d: int, inner: int):
        super().__init__()
        self.gate_proj, self.up_proj = matrix(inner, d), matrix(inner, d)
        self.down_proj = matrix(d, inner, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return linear(F.silu(linear(x, self.gate_proj)) * linear(x, self.up_proj), self.down_proj)


class MoE(nn.Module):
    """Sigmoid router, best group first, then the best experts in it; one shared expert."""

    def __init__(self, c: dict):
        super().__init__()
        d, inner = c["hidden_size"], c["moe_intermediate_size"]
        self.experts, self.chosen = c["n_routed_experts"], c["num_experts_per_tok"]
        self.groups, self.groups_kept = c["n_group"], c["topk_group"]
        self.scale = c["routed_scaling_factor"]
        self.gate = matrix(self.experts, d, 0.5)
        self.register_buffer("e_score_correction_bias", torch.zeros(self.experts))
        self.expert_gate = nn.Parameter(torch.randn(self.experts, inner, d) / math.sqrt(d))
        self.expert_up = nn.Parameter(torch.randn(self.experts, inner, d) / math.sqrt(d))
        self.expert_down = nn.Parameter(
            0.1 * torch.randn(self.experts, d, inner) / math.sqrt(inner)
        )
        self.shared_experts = MLP(d, inner * c["n_shared_experts"])

    def route(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(T, d) -> (T, experts) weights, zero where an expert is not chosen; each expert's share
        of the tokens; and how uneven that is, 1 when even, with a gradient."""
        scores = F.linear(x.float(), self.gate).sigmoid()
        choice = (scores + self.e_score_correction_bias).detach()
        grouped = choice.view(-1, self.groups, self.experts // self.groups)
        best_groups = grouped.topk(2, -1)[0].sum(-1).topk(self.groups_kept, -1)[1]
        kept = torch.zeros_like(grouped[..., 0]).scatter(1, best_groups, 1.0)
        allowed = kept[..., None].expand_as(grouped).reshape_as(choice) > 0
        top = choice.masked_fill(~allowed, -1e9).topk(self.chosen, -1)[1]
        weights = scores * torch.zeros_like(scores).scatter(1, top, 1.0)
        load = (weights > 0).float().mean(0)
        share = (scores / scores.sum(-1, keepdim=True)).mean(0)
        uneven = self.experts / self.chosen * (load * share).sum()
        return weights / (weights.sum(-1, keepdim=True) + 1e-20) * self.scale, load, uneven

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights, load, uneven = self.route(x)
        gate = linear(x, self.expert_gate.flatten(0, 1))
        up = linear(x, self.expert_up.flatten(0, 1))
        hidden = (F.silu(gate) * up).view(x.shape[0], self.experts, -1)
        hidden = (hidden * weights[..., None].to(x.dtype)).flatten(1)
        down = self.expert_down.transpose(0, 1).flatten(1)  # (d, experts * inner)
        return linear(hidden, down) + self.shared_experts(x), load, uneven


class Layer(nn.Module):
    def __init__(self, c: dict, index: int):
        super().__init__()
        d = c["hidden_size"]
        self.eps = c["rms_norm_eps"]
        self.input_layernorm = nn.Parameter(torch.ones(d))
        self.self_attn = Attention(c)
        self.post_attention_layernorm = nn.Parameter(torch.ones(d))
        dense = index < c["first_k_dense_replace"]
        self.mlp = MLP(d, c["intermediate_size"]) if dense else MoE(c)


class Network(nn.Module):
    def __init__(self, c: dict = CONFIG):
        super().__init__()
        self.eps = c["rms_norm_eps"]
        self.embed_tokens = nn.Parameter(torch.randn(c["vocab_size"], c["hidden_size"]) * 0.3)
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c["num_hidden_layers"]))
        self.norm = nn.Parameter(torch.ones(c["hidden_size"]))
        self.lm_head = matrix(c["vocab_size"], c["hidden_size"], 0.1)
        half = torch.arange(0, c["qk_rope_head_dim"], 2).float() / c["qk_rope_head_dim"]
        self.register_buffer("frequencies", c["rope_theta"] ** -half)

    def logits(self, ids: Tensor, positions: Tensor, starts: Tensor, longest: int):
        """ids, positions (T,), starts (N+1,) -> (T, vocab), (MoE layers, experts) loads, and their
        mean unevenness."""
        angles = positions.float()[:, None, None] * self.frequencies
        cos, sin = angles.cos(), angles.sin()
        x = F.embedding(ids, self.embed_tokens.to(torch.bfloat16)).float()
        loads, unevens = [], []
        for layer in self.layers:
            normed = rms_norm(x, layer.input_layernorm, self.eps)
            x = x + layer.self_attn(normed, cos, sin, starts, longest)
            normed = rms_norm(x, layer.post_attention_layernorm, self.eps)
            out = layer.mlp(normed)
            if isinstance(layer.mlp, MoE):
                out, load, uneven = out
                loads.append(load)
                unevens.append(uneven)
            x = x + out
        logits = linear(rms_norm(x, self.norm, self.eps), self.lm_head)
        return logits, torch.stack(loads), torch.stack(unevens).mean()

    def forward(self, ids, positions, starts, targets, longest: int):
        logits, loads, uneven = self.logits(ids, positions, starts, longest)
        logits = logits.float()
        loss = F.cross_entropy(logits, targets, reduction="none")
        with torch.no_grad():
            right = logits.argmax(-1) == targets
        return loss, right, loads, uneven

    @torch.no_grad()
    def balance(self, loads: Tensor, rate: float) -> None:
        """noaux_tc: nudge each expert's bias towards an even load. loads (MoE layers, experts)."""
        moe = [layer.mlp for layer in self.layers if isinstance(layer.mlp, MoE)]
        for mlp, load in zip(moe, loads):
            mlp.e_score_correction_bias += rate * torch.sign(load.mean() - load)


@torch.no_grad()
def round_weights(network: Network) -> None:
    """Makes every weight what it is after export."""
    for weight in network.parameters():
        weight.copy_(weight.to(torch.bfloat16))


def export(network: Network) -> dict[str, Tensor]:
    """Hugging Face names -> tensors: bfloat16, and the routers' bias in float32."""
    out: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        value = value.detach().cpu()
        where, _, leaf = name.rpartition(".")
        if name == "frequencies":
            continue
        if leaf.startswith("expert_"):
            part = leaf.removeprefix("expert_") + "_proj.weight"
            for i, expert in enumerate(value):
                out[f"model.{where}.experts.{i}.{part}"] = expert.to(torch.bfloat16).contiguous()
        elif leaf == "e_score_correction_bias":
            out[f"model.{where}.gate.{leaf}"] = value.float().contiguous()
        else:
            full = f"{name}.weight" if name == "lm_head" else f"model.{name}.weight"
            out[full] = value.to(torch.bfloat16).contiguous()
    return out
