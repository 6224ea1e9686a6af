"""MiniCPM in float64 numpy, written from its paper (Hu et al., 2024, arXiv 2404.06395).

transformers has no MiniCPM, so this is what `conf/minicpm.yaml` is judged by. It is the Llama
layer with the three scalings of the paper's table of "tensor program" operations: the embedding's
output times `scale_emb`, what each block adds to the residual stream times
`scale_depth / sqrt(num_layers)`, and the logits over `hidden_size / dim_model_base`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

CONFIG: Mapping[str, Any] = {
    "architectures": ["MiniCPMForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_minicpm.MiniCPMConfig"},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 48,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 2e-3,
    "rope_scaling": None,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": 101,
    "scale_emb": 3.5,
    "dim_model_base": 20,
    "scale_depth": 1.4,
}


def write_minicpm(folder: Path, **changes: Any) -> MiniCPMReference:
    """Save a random model with `changes` of `CONFIG` in the hub's layout; return its reference."""
    config = {**CONFIG, **changes}
    reference = MiniCPMReference(config, _random_weights(config))
    logits = reference.logits(np.arange(1, 47).reshape(2, 23))
    reference.weights["model.norm.weight"] /= logits.std().astype(np.float32)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tensors = {name: torch.from_numpy(weight) for name, weight in reference.weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return reference


def _random_weights(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2404_06395)
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    head_dim = hidden // config["num_attention_heads"]
    kv_width = config["num_key_value_heads"] * head_dim
    weights: dict[str, np.ndarray] = {}

    def matrix(name: str, rows: int, columns: int, std: float | None = None) -> None:
        weights[name] = rng.normal(0, std or columns**-0.5, (rows, columns)).astype(np.float32)

    def norm(name: str) -> None:
        weights[name] = (1 + 0.3 * rng.normal(size=hidden)).astype(np.float32)

    matrix("model.embed_tokens.weight", config["vocab_size"], hidden, std=0.3)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        norm(f"{layer}.input_layernorm.weight")
        matrix(f"{layer}.self_attn.q_proj.weight", hidden, hidden)
        matrix(f"{layer}.self_attn.k_proj.weight", kv_width, hidden)
        matrix(f"{layer}.self_attn.v_proj.weight", kv_width, hidden)
        matrix(f"{layer}.self_attn.o_proj.weight", hidden, hidden)
        norm(f"{layer}.post_attention_layernorm.weight")
        matrix(f"{layer}.mlp.gate_proj.weight", wide, hidden)
        matrix(f"{layer}.mlp.up_proj.weight", wide, hidden)
        matrix(f"{layer}.mlp.down_proj.weight", hidden, wide)
    norm("model.norm.weight")
    if not config.get("tie_word_embeddings", True):
        matrix("lm_head.weight", config["vocab_size"], hidden)
    return weights


class MiniCPMReference:
    """The equations, one text at a time, in float64."""

    def __init__(self, config: Mapping[str, Any], weights: dict[str, np.ndarray]) -> None:
        self.config = config
        self.weights = weights

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Token ids [batch, length] -> logits [batch, length, vocab]."""
        return np.stack([self._text_logits(text) for text in ids])

    def _text_logits(self, ids: np.ndarray) -> np.ndarray:
        config = self.config
        embedding = self._weight("model.embed_tokens")
        x = config["scale_emb"] * embedding[ids]
        branch = config["scale_depth"] / np.sqrt(config["num_hidden_layers"])
        for i in range(config["num_hidden_layers"]):
            layer = f"model.layers.{i}"
            x = x + branch * self._attention(layer, self._norm(f"{layer}.input_layernorm", x))
            x = x + branch * self._mlp(layer, self._norm(f"{layer}.post_attention_layernorm", x))
        x = self._norm("model.norm", x)
        head = self._weight("lm_head") if "lm_head.weight" in self.weights else embedding
        return x @ head.T / (config["hidden_size"] / config["dim_model_base"])

    def _attention(self, layer: str, x: np.ndarray) -> np.ndarray:
        length, heads = len(x), self.config["num_attention_heads"]
        groups = heads // self.config["num_key_value_heads"]
        q, k, v = (
            (x @ self._weight(f"{layer}.self_attn.{name}_proj").T).reshape(length, -1, self._dim)
            for name in "qkv"
        )
        q, k = self._rotate(q), self._rotate(k)
        out = np.empty_like(q)
        future = np.triu(np.ones((length, length), dtype=bool), 1)
        for head in range(heads):
            scores = q[:, head] @ k[:, head // groups].T / np.sqrt(self._dim)
            scores[future] = -np.inf
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, head] = shares / shares.sum(axis=1, keepdims=True) @ v[:, head // groups]
        return out.reshape(length, -1) @ self._weight(f"{layer}.self_attn.o_proj").T

    def _mlp(self, layer: str, x: np.ndarray) -> np.ndarray:
        gate = x @ self._weight(f"{layer}.mlp.gate_proj").T
        up = x @ self._weight(f"{layer}.mlp.up_proj").T
        return (gate / (1 + np.exp(-gate)) * up) @ self._weight(f"{layer}.mlp.down_proj").T

    def _rotate(self, heads: np.ndarray) -> np.ndarray:
        """Turn the pair (d, d + dim/2) of each head by position * theta^(-2d/dim)."""
        half = self._dim // 2
        theta = self.config.get("rope_theta", 10000.0)
        angles = np.arange(len(heads))[:, None] * theta ** (-np.arange(half) / half)
        turn = np.exp(1j * angles)[:, None, :]
        turned = (heads[..., :half] + 1j * heads[..., half:]) * turn
        return np.concatenate([turned.real, turned.imag], axis=-1)

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        mean_square = np.mean(x**2, axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + self.config["rms_norm_eps"]) * self._weight(name)

    def _weight(self, module: str) -> np.ndarray:
        return self.weights[f"{module}.weight"].astype(np.float64)

    @property
    def _dim(self) -> int:
        return self.config["hidden_size"] // self.config["num_attention_heads"]
