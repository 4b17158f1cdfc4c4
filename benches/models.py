"""Synthetic models: a transformer's matrices of heavy-tailed bf16 weights, the same each time.

A model is written just before it is needed, and removed when its block ends, however it ends.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

# Values that are drawn; tensors begin at different ones. A prime, so that no rows are equal.
DRAWN = 8_388_593
SEED = 20260101


@dataclass(frozen=True)
class Model:
    """What is in a model."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    #: Nothing but one matrix of intermediate x hidden in each layer.
    bare: bool = False
    #: Rows of an embedding of so many tokens, 0 for none.
    tokens: int = 0

    def shapes(self) -> dict[str, list[int]]:
        """Tensors by name."""
        wide, tall = [self.hidden, self.intermediate], [self.intermediate, self.hidden]
        square, norm = [self.hidden, self.hidden], [self.hidden]
        if self.bare:
            return {f"layers.{i}.weight": tall for i in range(self.layers)}
        layer = {f"self_attn.{part}_proj.weight": square for part in "qkvo"}
        layer |= {"mlp.gate_proj.weight": tall, "mlp.up_proj.weight": tall}
        layer |= {"mlp.down_proj.weight": wide}
        layer |= {"input_layernorm.weight": norm, "post_attention_layernorm.weight": norm}
        names = {f"model.layers.{i}.{name}": layer[name] for i in range(self.layers) for name in layer}
        embedding = {"model.embed_tokens.weight": [self.tokens, self.hidden]} if self.tokens else {}
        return embedding | names | {"model.norm.weight": norm}

    @property
    def weights(self) -> int:
        """How many weights there are: the names of models are nominal."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    @property
    def bytes(self) -> int:
        """Of the values."""
        return 2 * self.weights


SIZES = {
    model.name: model
    for model in (
        Model("10M", 4, 384, 1536),
        Model("100M", 12, 768, 3072),
        Model("600M", 24, 1024, 4096),
        Model("7B", 32, 4096, 11008),
    )
}
# As a 14B text model, with one tensor of 623 million weights.
FOURTEEN_B = Model("14B", 42, 5120, 13824, tokens=121_600)
TWO_GB = Model("2GB", 15, 2048, 8192)
HUNDRED_LAYERS = Model("100 layers of 1024x4096", 100, 4096, 1024, bare=True)
TEN_LAYERS = Model("10 layers of 1024x4096", 10, 4096, 1024, bare=True)


class NoSpace(Exception):
    """The disk is too full."""


def draw() -> np.ndarray:
    """bf16 values of Student's t with 5 degrees of freedom, scaled to a deviation of 0.02."""
    values = np.random.default_rng(SEED).standard_t(5, DRAWN) * (0.02 / math.sqrt(5 / 3))
    bits = values.astype("<f4").view("<u4")
    # Rounded half to even.
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits >> 16).astype("<u2")


def write(model: Model, path: Path) -> None:
    """Writes a safetensors file, tensor by tensor, down to the disk: what the system writes later
    would slow what is measured."""
    values = memoryview(draw()).cast("B")
    header, ends = {}, [0]
    for name, shape in model.shapes().items():
        ends.append(ends[-1] + 2 * math.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": ends[-2:]}
    text = json.dumps(header).encode()
    # Values begin at a multiple of 8, as the format wants.
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for index, (begin, end) in enumerate(pairwise(ends)):
            place = 2 * (index * 1_000_003 % DRAWN)
            left = end - begin
            while left:
                written = file.write(values[place : place + left])
                left -= written
                place = (place + written) % len(values)
        os.fsync(file.fileno())


@contextmanager
def written(model: Model, folder: Path, outputs: float) -> Iterator[Path]:
    """The path of a model that is there for a while. Files of `outputs` times its size must fit
    beside it."""
    needed = int(model.bytes * (1 + outputs)) + (64 << 20)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoSpace(
            f"the model {model.name} and what is made of it need {needed / 1e9:.1f} GB in {folder}, "
            f"where {free / 1e9:.1f} GB are free; --workdir names another folder"
        )
    path = folder / "model.safetensors"
    try:
        write(model, path)
        yield path
    finally:
        path.unlink(missing_ok=True)
