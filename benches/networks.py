"""The two models of examples/models in numpy: forward passes as their train_*.py define them.

`observe(layer, timestep, x)` is called with the input of every linear, as rows; a layer's name is its
weight's without ".weight". What it returns, unless None, is used instead of x.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Optional

import numpy as np

# The time of a masked text model is the share of masked characters, in thousandths.
TIMESTEPS = 1000

Array = np.ndarray[Any, Any]
Observe = Callable[[str, int, Array], Optional[Array]]

NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I32": "<i4", "I64": "<i8", "U8": "u1"}


def read_safetensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Arrays by name, floats as f32; and the file's metadata."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        array = np.frombuffer(data[begin:end], NUMPY[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            array = (array.astype("<u4") << 16).view("<f4")
        arrays[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
    return arrays, metadata


def silu(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    """In its tanh form."""
    inner = x * x
    inner *= np.float32(0.044715)
    inner += 1
    inner *= x
    inner *= np.float32(np.sqrt(2 / np.pi))
    np.tanh(inner, out=inner)
    inner += 1
    inner *= x
    inner *= np.float32(0.5)
    return inner


def layer_norm(x: Array) -> Array:
    """Without parameters."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.einsum("...i,...i->...", centred, centred)[..., None] / x.shape[-1]
    centred /= np.sqrt(variance + np.float32(1e-6))
    return centred


def softmax(x: Array) -> Array:
    x = x - x.max(axis=-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(axis=-1, keepdims=True)
    return x


def attend(q: Array, k: Array, v: Array) -> Array:
    """Attention of [batch, heads, tokens, head] into [batch, tokens, hidden]."""
    batch, heads, tokens, head = q.shape
    scores = softmax(q @ k.swapaxes(2, 3) * np.float32(head**-0.5))
    return (scores @ v).transpose(0, 2, 1, 3).reshape(batch, tokens, heads * head)


class Network:
    """Weights by name, and how they are applied."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.weights = dict(weights)

    def linear(self, layer: str, timestep: int, x: Array, observe: Observe | None) -> Array:
        weight = self.weights[layer + ".weight"]
        rows = x.reshape(-1, x.shape[-1])
        if observe is not None:
            changed = observe(layer, timestep, rows)
            rows = rows if changed is None else changed
        # A convolution over patches that do not overlap is a linear of each patch.
        out = rows @ weight.reshape(len(weight), -1).T
        bias = self.weights.get(layer + ".bias")
        if bias is not None:
            out += bias
        return out.reshape(*x.shape[:-1], -1)


class Dit(Network):
    """A class-conditional diffusion transformer that predicts the noise in 8x8 digits."""

    heads = 4
    depth = 4
    null_class = 10
    alphas_cumprod = np.cumprod(1 - np.linspace(1e-4, 0.02, TIMESTEPS))

    def blocks(self) -> list[str]:
        """The weights that rows of the benchmark quantize: all linears of the blocks."""
        return [
            name for name, weight in self.weights.items()
            if name.startswith("blocks.") and weight.ndim == 2
        ]

    def forward(self, x: Array, t: int, classes: Array, observe: Observe | None = None) -> Array:
        """Noise in images [n, 8, 8] that are all at one timestep."""

        def linear(layer: str, x: Array) -> Array:
            return self.linear(layer, t, x, observe)

        n = len(x)
        patches = x.reshape(n, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(n, 16, 4)
        h = linear("x_embedder.proj", patches.astype(np.float32)) + self.weights["pos_embed"]
        angles = np.float32(t) * np.exp(-np.log(10000) * np.arange(128) / 128).astype(np.float32)
        time = np.concatenate([np.cos(angles), np.sin(angles)])[None]
        time = linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", time)))
        condition = silu(time + self.weights["y_embedder.embedding_table.weight"][classes])

        def modulation(layer: str, count: int) -> list[Array]:
            return np.split(linear(layer, condition)[:, None], count, axis=2)

        def modulate(x: Array, shift: Array, scale: Array) -> Array:
            x = layer_norm(x)
            x *= 1 + scale
            x += shift
            return x

        for block in (f"blocks.{index}" for index in range(self.depth)):
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation(
                f"{block}.adaLN_modulation.1", 6
            )
            qkv = linear(f"{block}.attn.qkv", modulate(h, shift_a, scale_a))
            q, k, v = qkv.reshape(n, 16, 3, self.heads, -1).transpose(2, 0, 3, 1, 4)
            h += gate_a * linear(f"{block}.attn.proj", attend(q, k, v))
            inner = gelu(linear(f"{block}.mlp.fc1", modulate(h, shift_m, scale_m)))
            h += gate_m * linear(f"{block}.mlp.fc2", inner)
        shift, scale = modulation("final_layer.adaLN_modulation.1", 2)
        out = linear("final_layer.linear", modulate(h, shift, scale))
        return out.reshape(n, 4, 4, 2, 2).transpose(0, 1, 3, 2, 4).reshape(n, 8, 8)


class Mdlm(Network):
    """A masked diffusion language model of characters; its time is the share of masked ones."""

    heads = 4
    depth = 4
    mask_id = 96

    def blocks(self) -> list[str]:
        """The weights that rows of the benchmark quantize: all linears of the layers."""
        return [name for name in self.weights if name.endswith("_proj.weight")]

    def norm(self, layer: str, x: Array) -> Array:
        mean = np.einsum("...i,...i->...", x, x)[..., None] / x.shape[-1]
        return x / np.sqrt(mean + np.float32(1e-6)) * self.weights[layer + ".weight"]

    def forward(self, ids: Array, t: int = 0, observe: Observe | None = None) -> Array:
        """Logits [n, tokens, vocabulary] of ids [n, tokens]."""

        def linear(layer: str, x: Array) -> Array:
            return self.linear(layer, t, x, observe)

        n, tokens = ids.shape
        h = self.weights["model.embed_tokens.weight"][ids]
        head = h.shape[-1] // self.heads
        inverse = 1 / 10000 ** (np.arange(0, head, 2) / head)
        angles = np.arange(tokens)[:, None] * inverse
        cos, sin = (np.tile(f(angles), 2).astype(np.float32) for f in (np.cos, np.sin))

        def heads(x: Array) -> Array:
            return x.reshape(n, tokens, self.heads, head).transpose(0, 2, 1, 3)

        def rotate(x: Array) -> Array:
            a, b = np.split(x, 2, axis=-1)
            return x * cos + np.concatenate([-b, a], axis=-1) * sin

        for layer in (f"model.layers.{index}" for index in range(self.depth)):
            x = self.norm(f"{layer}.input_layernorm", h)
            q, k, v = (heads(linear(f"{layer}.self_attn.{name}_proj", x)) for name in "qkv")
            h = h + linear(f"{layer}.self_attn.o_proj", attend(rotate(q), rotate(k), v))
            x = self.norm(f"{layer}.post_attention_layernorm", h)
            inner = silu(linear(f"{layer}.mlp.gate_proj", x))
            inner *= linear(f"{layer}.mlp.up_proj", x)
            h = h + linear(f"{layer}.mlp.down_proj", inner)
        return linear("lm_head", self.norm("model.norm", h))
