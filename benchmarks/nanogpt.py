"""nanoGPT's model, written after its description: what its `ckpt.pt` holds, and the logits that it gives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

ARGS = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 24, "vocab_size": 40, "dropout": 0.0}


class Norm(nn.Module):
    """Layer norm whose bias may be absent."""

    def __init__(self, width, bias):
        super().__init__()
        self.weight = nn.Parameter(1 + 0.3 * torch.randn(width))
        self.bias = nn.Parameter(0.3 * torch.randn(width)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    """Fused queries, keys and values; with `mask`, the buffer that older checkpoints hold."""

    def __init__(self, width, bias, mask):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
        n = ARGS["block_size"]
        if mask:  # where the flash kernel is missing
            self.register_buffer("bias", torch.tril(torch.ones(n, n)).view(1, 1, n, n))

    def forward(self, x):
        q, k, v = self.c_attn(x).split(x.shape[-1], dim=2)
        q, k, v = (one.unflatten(-1, (ARGS["n_head"], -1)).transpose(1, 2) for one in (q, k, v))
        logits = q @ k.mT / q.shape[-1] ** 0.5
        later = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        z = logits.masked_fill(later, -torch.inf).softmax(-1) @ v
        return self.c_proj(z.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Four times as wide, GELU."""

    def __init__(self, width, bias):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width, bias=bias), nn.Linear(4 * width, width, bias=bias)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    """Attention and MLP, each after its norm."""

    def __init__(self, width, bias, mask):
        super().__init__()
        self.ln_1, self.attn = Norm(width, bias), Attention(width, bias, mask)
        self.ln_2, self.mlp = Norm(width, bias), MLP(width, bias)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """The model whose weights a `ckpt.pt` holds."""

    def __init__(self, *, bias, mask=False):
        super().__init__()
        width = ARGS["n_embd"]
        parts = {
            "wte": nn.Embedding(ARGS["vocab_size"], width),
            "wpe": nn.Embedding(ARGS["block_size"], width),
            "h": nn.ModuleList(Block(width, bias, mask) for _ in range(ARGS["n_layer"])),
            "ln_f": Norm(width, bias),
        }
        for table in (parts["wte"], parts["wpe"]):
            nn.init.normal_(table.weight, std=0.2)
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(width, ARGS["vocab_size"], bias=False)
        self.lm_head.weight = parts["wte"].weight

    def forward(self, ids):
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.shape[1]))
        for layer in range(ARGS["n_layer"]):
            x = self.transformer.get_submodule(f"h.{layer}")(x)
        return self.lm_head(self.transformer["ln_f"](x))

    def checkpoint(self, *, prefix=""):
        """What nanoGPT's training writes."""
        optimizer = torch.optim.AdamW(self.parameters())
        return {
            "model": {f"{prefix}{name}": one for name, one in self.state_dict().items()},
            "optimizer": optimizer.state_dict(),
            "model_args": ARGS | {"bias": self.transformer["ln_f"].bias is not None},
            "iter_num": 500,
            "best_val_loss": torch.tensor(1.5),
            "config": {"out_dir": "out", "compile": bool(prefix)},
        }
