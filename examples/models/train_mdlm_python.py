"""Trains a small character-level masked diffusion language model on Python's standard library.

Tensor names and layout follow LLaDA and Dream; there is no time input, the mask ratio plays its
part. Weights are saved as bfloat16.
"""

import argparse
import math
import pathlib
import sysconfig
import time

import torch
import torch.nn.functional as F
from torch import nn

# Ids: 0 = newline, 1 to 95 = ASCII 32 to 126, 96 = [MASK].
VOCABULARY = 97
MASK = 96
LENGTH = 128
BATCH = 32
LEARNING_RATE = 1.5e-3


class RmsNorm(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def rotary(head):
    inverse = 1 / 10000 ** (torch.arange(0, head, 2) / head)
    angles = torch.arange(LENGTH)[:, None] * inverse
    return torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Attention(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.heads = heads
        self.cos, self.sin = rotary(hidden // heads)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(hidden, hidden, bias=False))

    def forward(self, x):
        batch, tokens, hidden = x.shape
        q, k, v = (
            project(x).view(batch, tokens, self.heads, hidden // self.heads).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, self.cos, self.sin), rotate(k, self.cos, self.sin)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.o_proj(out.transpose(1, 2).reshape(batch, tokens, hidden))


class Mlp(nn.Module):
    def __init__(self, hidden, intermediate):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, hidden, heads, intermediate):
        super().__init__()
        self.self_attn = Attention(hidden, heads)
        self.mlp = Mlp(hidden, intermediate)
        self.input_layernorm = RmsNorm(hidden)
        self.post_attention_layernorm = RmsNorm(hidden)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Model(nn.Module):
    def __init__(self, hidden, layers, heads, intermediate):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, hidden)
        self.layers = nn.ModuleList(Layer(hidden, heads, intermediate) for _ in range(layers))
        self.norm = RmsNorm(hidden)


class LanguageModel(nn.Module):
    def __init__(self, hidden, layers, heads, intermediate):
        super().__init__()
        self.model = Model(hidden, layers, heads, intermediate)
        self.lm_head = nn.Linear(hidden, VOCABULARY, bias=False)
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.02)

    def forward(self, ids):
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x)
        return self.lm_head(self.model.norm(x))


def read_text():
    """The sources as ids: the first 95% to train on, the rest held out."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    files = sorted(
        str(path)
        for folder in (".", "json", "email", "asyncio")
        for path in (root / folder).glob("*.py")
    )
    text = "\n".join(
        pathlib.Path(path).read_text(encoding="utf8", errors="ignore") for path in files
    )
    codes = text.encode("ascii", "replace")
    ids = torch.tensor([0 if c == 10 else c - 31 if 32 <= c < 127 else 1 for c in codes])
    cut = int(len(ids) * 0.95)
    return ids[:cut], ids[cut:]


def masked_loss(model, ids, ratio, weighted=True):
    """Negative log-likelihood of masked characters; weighted by 1/ratio it is the bound."""
    masked = torch.rand(ids.shape) < ratio[:, None]
    logits = model(torch.where(masked, MASK, ids))
    loss = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none") * masked
    if weighted:
        return (loss / ratio[:, None]).sum() / ids.numel()
    return loss.sum() / masked.sum()


def evaluate(model, held_out):
    generator = torch.Generator().manual_seed(1)
    starts = torch.randint(0, len(held_out) - LENGTH, (256,), generator=generator)
    ids = torch.stack([held_out[i : i + LENGTH] for i in starts])
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(2)
        return {
            str(ratio): round(masked_loss(model, ids, torch.full((256,), ratio), False).item(), 4)
            for ratio in (0.25, 0.5, 0.75)
        }


def save(path, model, held_out, args):
    from safetensors.torch import save_file

    measured = evaluate(model, held_out)
    print("masked negative log-likelihood", measured, flush=True)
    metadata = {
        "architecture": "MDLM (LLaDA layout, no time conditioning)",
        "hidden_size": str(args.hidden),
        "num_layers": str(args.layers),
        "num_heads": str(args.heads),
        "intermediate_size": str(args.intermediate),
        "seq_len": str(LENGTH),
        "rope_theta": "10000",
        "vocab": "0=newline,1..95=ASCII 32..126,96=[MASK]",
        "mask_id": str(MASK),
        "data": "CPython standard library sources, first 95% of characters; the rest held for evaluation",
        "masked_nll": str(measured),
    }
    weights = model.state_dict().items()
    bf16 = {name: weight.to(torch.bfloat16).contiguous() for name, weight in weights}
    save_file(bf16, path, metadata=metadata)


def train(args):
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    text, held_out = read_text()
    model = LanguageModel(args.hidden, args.layers, args.heads, args.intermediate)
    print("characters", len(text), "parameters", sum(p.numel() for p in model.parameters()))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=0.05, betas=(0.9, 0.95)
    )
    started = time.time()
    for step in range(args.steps):
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / args.steps)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, step / 150) * cosine + 1e-6
        starts = torch.randint(0, len(text) - LENGTH, (BATCH,))
        ids = torch.stack([text[i : i + LENGTH] for i in starts])
        # Evenly spread ratios with a common random shift lower the variance.
        ratio = (torch.rand(1) + torch.arange(BATCH) / BATCH) % 1 * 0.98 + 0.02
        loss = masked_loss(model, ids, ratio)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(step, round(loss.item(), 4), f"{time.time() - started:.0f} s", flush=True)
    save(args.output, model, held_out, args)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", help="safetensors file to write")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--intermediate", type=int, default=704)
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
