"""Trains a small class-conditional DiT on the 8x8 digits that ship with scikit-learn.

Architecture and tensor names follow "Scalable Diffusion Models with Transformers" (Peebles and
Xie, 2023). The exponential moving average of the weights is saved as bfloat16.
"""

import argparse
import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

TIMESTEPS = 1000
NULL_CLASS = 10
BATCH = 128
LEARNING_RATE = 4e-4


class TimestepEmbedder(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, t):
        frequencies = torch.exp(-math.log(10000) * torch.arange(128) / 128)
        angles = t[:, None].float() * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1))


class LabelEmbedder(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.embedding_table = nn.Embedding(NULL_CLASS + 1, hidden)


class PatchEmbedder(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.proj = nn.Conv2d(1, hidden, 2, 2)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.proj = nn.Linear(hidden, hidden)

    def forward(self, x):
        batch, tokens, hidden = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, hidden // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, hidden))


class Mlp(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.fc1 = nn.Linear(hidden, 4 * hidden)
        self.fc2 = nn.Linear(4 * hidden, hidden)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulate(x, shift, scale):
    return x * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.hidden = hidden
        self.attn = Attention(hidden, heads)
        self.mlp = Mlp(hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))

    def forward(self, x, condition):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(
            condition
        ).chunk(6, 1)

        def norm(x):
            return F.layer_norm(x, (self.hidden,), eps=1e-6)

        x = x + gate_a[:, None] * self.attn(modulate(norm(x), shift_a, scale_a))
        return x + gate_m[:, None] * self.mlp(modulate(norm(x), shift_m, scale_m))


class FinalLayer(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.hidden = hidden
        self.linear = nn.Linear(hidden, 4)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))

    def forward(self, x, condition):
        shift, scale = self.adaLN_modulation(condition).chunk(2, 1)
        return self.linear(modulate(F.layer_norm(x, (self.hidden,), eps=1e-6), shift, scale))


def sincos_positions(hidden, grid):
    frequencies = 1 / 10000 ** (np.arange(hidden // 4) / (hidden / 4))
    positions = np.stack(np.meshgrid(np.arange(grid), np.arange(grid)), 0).reshape(2, -1)
    parts = [
        np.concatenate([np.sin(p[:, None] * frequencies), np.cos(p[:, None] * frequencies)], 1)
        for p in positions
    ]
    return torch.tensor(np.concatenate(parts, 1), dtype=torch.float32)[None]


class DiT(nn.Module):
    def __init__(self, hidden, depth, heads):
        super().__init__()
        self.x_embedder = PatchEmbedder(hidden)
        self.t_embedder = TimestepEmbedder(hidden)
        self.y_embedder = LabelEmbedder(hidden)
        self.pos_embed = nn.Parameter(sincos_positions(hidden, 4), requires_grad=False)
        self.blocks = nn.ModuleList(Block(hidden, heads) for _ in range(depth))
        self.final_layer = FinalLayer(hidden)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            nn.init.zeros_(block.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)

    def forward(self, x, t, y):
        x = self.x_embedder(x) + self.pos_embed
        condition = self.t_embedder(t) + self.y_embedder.embedding_table(y)
        for block in self.blocks:
            x = block(x, condition)
        x = self.final_layer(x, condition)
        # 4x4 patches of 2x2 pixels
        return x.view(-1, 4, 4, 2, 2).permute(0, 1, 3, 2, 4).reshape(-1, 1, 8, 8)


def save(path, weights, args):
    from safetensors.torch import save_file

    metadata = {
        "architecture": "DiT",
        "hidden_size": str(args.hidden),
        "depth": str(args.depth),
        "num_heads": str(args.heads),
        "patch_size": "2",
        "input_size": "8",
        "in_channels": "1",
        "num_classes": "10",
        "null_class": str(NULL_CLASS),
        "num_timesteps": str(TIMESTEPS),
        "beta_schedule": "linear(1e-4,0.02)",
        "predicts": "epsilon",
        "data": "UCI 8x8 optical digits (scikit-learn load_digits), x/8-1",
    }
    bf16 = {name: weight.to(torch.bfloat16).contiguous() for name, weight in weights.items()}
    save_file(bf16, path, metadata=metadata)


def train(args):
    from sklearn.datasets import load_digits

    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, TIMESTEPS), 0)
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 8 - 1, dtype=torch.float32).view(-1, 1, 8, 8)
    labels = torch.tensor(labels)

    model = DiT(args.hidden, args.depth, args.heads)
    average = {name: weight.clone() for name, weight in model.state_dict().items()}
    print("parameters", sum(p.numel() for p in model.parameters()), flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    started = time.time()
    for step in range(args.steps):
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / args.steps)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, step / 200) * cosine + 1e-6
        chosen = torch.randint(0, len(images), (BATCH,))
        drop = torch.rand(BATCH) < 0.1
        classes = torch.where(drop, torch.tensor(NULL_CLASS), labels[chosen])
        t = torch.randint(0, TIMESTEPS, (BATCH,))
        noise = torch.randn_like(images[chosen])
        a = alpha_bar[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * images[chosen] + (1 - a).sqrt() * noise
        loss = F.mse_loss(model(noisy, t, classes), noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(0.999, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, weight in model.state_dict().items():
                average[name].lerp_(weight, 1 - decay)
        if step % 100 == 0:
            print(step, round(loss.item(), 4), f"{time.time() - started:.0f} s", flush=True)
    save(args.output, average, args)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", help="safetensors file to write")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
