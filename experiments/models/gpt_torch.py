"""The GPT of `gpt.py` in PyTorch with fused attention, to compare a training step's speed with."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from experiments.models.gpt import Config


class Block(nn.Module):
    """One pre-norm layer: [B, T, width] -> [B, T, width]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        inner = config.heads * (config.head_dim or width // config.heads)
        hidden = config.mlp or 4 * width
        self.attn_norm = nn.RMSNorm(width, config.epsilon)
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, config.epsilon)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(self.attn_norm(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        hidden = functional.gelu(self.up(self.mlp_norm(x)), approximate="tanh")
        return x + self.down(hidden)


class GPT(nn.Module):
    """Tokens [B, T + 1] -> mean nats of the last T, each given those before it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab, config.width)
        self.positions = nn.Embedding(config.window, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.RMSNorm(config.width, config.epsilon)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens[:, :-1]) + self.positions.weight[: tokens.shape[1] - 1]
        for layer in self.layers:
            x = layer(x)
        logits = self.final_norm(x) @ self.embed.weight.T
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def from_jax(config: Config, params: Any) -> GPT:
    """The model with the weights of an unrolled one in Flax."""
    net = GPT(config)
    copied = {
        "embed.weight": params["embed"]["embedding"],
        "positions.weight": params["positions"]["embedding"],
        "final_norm.weight": params["final_norm"]["scale"],
    }
    for layer in range(config.layers):
        block, name = params[f"layers_{layer}"], f"layers.{layer}"
        attn, width = block["attn"], config.width
        qkv = [np.reshape(attn[each]["kernel"], (width, -1)).T for each in "qkv"]
        copied |= {
            f"{name}.qkv.weight": np.concatenate(qkv),
            f"{name}.out.weight": np.reshape(attn["out"]["kernel"], (-1, width)).T,
            f"{name}.attn_norm.weight": block["attn_norm"]["scale"],
            f"{name}.mlp_norm.weight": block["mlp_norm"]["scale"],
        }
        for each in ("up", "down"):
            copied |= {
                f"{name}.{each}.weight": np.transpose(block["mlp"][each]["kernel"]),
                f"{name}.{each}.bias": block["mlp"][each]["bias"],
            }
    # Every weight of either model has its counterpart: strict.
    net.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in copied.items()})
    return net
