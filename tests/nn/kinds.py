"""Modules of all kinds whose weights can be factorized, with inputs for them."""

from __future__ import annotations

import torch
from torch import nn


class Attention(nn.Module):
    """`MultiheadAttention` of a sequence with itself."""

    def __init__(self, size):
        super().__init__()
        self.inner = nn.MultiheadAttention(size, 4)

    def forward(self, x):
        return self.inner(x, x, x)[0]


KINDS = {
    "linear": (lambda: nn.Linear(24, 18), lambda: torch.randn(3, 24)),
    "convolution": (lambda: nn.Conv2d(8, 12, 3), lambda: torch.randn(2, 8, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose1d(8, 12, 3), lambda: torch.randn(2, 8, 5)),
    "embedding": (lambda: nn.Embedding(24, 18), lambda: torch.tensor([[1, 12], [7, 12]])),
    "bag": (lambda: nn.EmbeddingBag(24, 18), lambda: torch.tensor([[1, 12], [7, 12]])),
    "gru": (lambda: nn.GRU(24, 18), lambda: torch.randn(4, 2, 24)),
    "lstm": (lambda: nn.LSTM(24, 18), lambda: torch.randn(4, 2, 24)),
    "attention": (lambda: Attention(24), lambda: torch.randn(4, 2, 24)),
}
"""By name, how to make one and an input."""


def first(output):
    """The output itself, of recurrent layers without their state."""
    return output[0] if isinstance(output, tuple) else output
