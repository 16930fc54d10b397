"""Layers drawn at random, with inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

Random = np.random.Generator


class Drawn(NamedTuple):
    """A layer, and what makes inputs of a batch for it, the same every time."""

    module: nn.Module
    inputs: Callable[[int], tuple[Any, ...]]


def _few(rng: Random, low: int, high: int) -> int:
    return int(rng.integers(low, high))


def _normal(seed: int, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _numbers(seed: int, below: int, *shape: int) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def linear(rng: Random, dtype: torch.dtype) -> Drawn:
    """With one axis of batch, several or none."""
    columns, seed, way = _few(rng, 4, 33), _few(rng, 0, 1000), _few(rng, 0, 4)
    shapes: dict[int, Callable[[int], tuple[int, ...]]] = {0: lambda n: (n, 3), 1: lambda n: (2, 1, n), 2: lambda n: ()}
    shape = shapes.get(way, lambda n: (n,))
    layer = nn.Linear(columns, _few(rng, 4, 33), bool(rng.integers(2)))
    return Drawn(layer, lambda n: (_normal(seed, dtype, *shape(n), columns),))


def convolution(axes: int, transposed: bool) -> Callable[[Random, torch.dtype], Drawn]:
    """Of so many axes, with any stride, padding, dilation, groups and padding mode."""

    def made(rng: Random, dtype: torch.dtype) -> Drawn:
        groups = int(rng.choice([1, 1, 1, 2]))
        source, target = groups * _few(rng, 2, 7), groups * _few(rng, 2, 7)
        each = lambda low, high: tuple(_few(rng, low, high) for _ in range(axes))  # noqa: E731
        kernel, stride, dilation, padding = each(1, 4), each(1, 4), each(1, 3), each(0, 3)
        options: dict[str, Any] = {"stride": stride, "dilation": dilation, "groups": groups, "padding": padding}
        options["bias"] = bool(rng.integers(2))
        if transposed:
            most = (max(s, d) for s, d in zip(stride, dilation, strict=True))
            options["output_padding"] = tuple(_few(rng, 0, m) for m in most)
        else:
            options["padding_mode"] = str(rng.choice(["zeros", "zeros", "reflect", "replicate", "circular"]))
            if rng.random() < 0.2:
                options |= {"padding": str(rng.choice(["same", "valid"])), "stride": 1}
        name = f"Conv{'Transpose' if transposed else ''}{axes}d"
        layer = getattr(nn, name)(source, target, kernel, **options)
        size, seed = each(6, 9), _few(rng, 0, 1000)
        batched, last = rng.random() < 0.85, axes == 2 and rng.random() < 0.3

        def inputs(n: int) -> tuple[Tensor, ...]:
            x = _normal(seed, dtype, *([min(n, 9)] if batched else []), source, *size)
            return (x.contiguous(memory_format=torch.channels_last) if last and batched else x,)

        return Drawn(layer.to(memory_format=torch.channels_last) if last else layer, inputs)

    return made


def embedding(rng: Random, dtype: torch.dtype) -> Drawn:
    rows, columns, seed = _few(rng, 6, 60), _few(rng, 4, 20), _few(rng, 0, 1000)
    layer = nn.Embedding(
        rows,
        columns,
        padding_idx=[None, _few(rng, 0, rows), -1][rng.integers(3)],
        max_norm=[None, None, None, 1.0][rng.integers(4)],
        scale_grad_by_freq=rng.random() < 0.2,
    )
    return Drawn(layer, lambda n: (_numbers(seed, rows, n, 3),))


def bag(rng: Random, dtype: torch.dtype) -> Drawn:
    """With bags as rows, or with offsets; with a weight for each sample, or without."""
    rows, columns, seed = _few(rng, 6, 60), _few(rng, 4, 20), _few(rng, 0, 1000)
    mode, offsets = str(rng.choice(["sum", "mean", "max"])), bool(rng.integers(2))
    layer = nn.EmbeddingBag(
        rows,
        columns,
        mode=mode,
        padding_idx=[None, _few(rng, 0, rows)][rng.integers(2)],
        include_last_offset=offsets and bool(rng.integers(2)),
    )
    weighted = mode == "sum" and bool(rng.integers(2))

    def inputs(n: int) -> tuple[Any, ...]:
        if not offsets:
            given: tuple[Any, ...] = (_numbers(seed, rows, n, 4),)
            return (*given, None, _normal(seed, dtype, n, 4)) if weighted else given
        ends = torch.arange(0, 3 * n + (3 if layer.include_last_offset else 0), 3)
        given = (_numbers(seed, rows, 3 * n), ends)
        return (*given, _normal(seed, dtype, 3 * n)) if weighted else given

    return Drawn(layer, inputs)


def recurrent(kind: type[nn.RNNBase]) -> Callable[[Random, torch.dtype], Drawn]:
    def made(rng: Random, dtype: torch.dtype) -> Drawn:
        size, hidden, seed, first = _few(rng, 4, 14), _few(rng, 4, 14), _few(rng, 0, 1000), bool(rng.integers(2))
        options: dict[str, Any] = {"num_layers": _few(rng, 1, 3), "bidirectional": bool(rng.integers(2))}
        options |= {"batch_first": first, "bias": bool(rng.integers(2))}
        if kind is nn.LSTM and rng.random() < 0.3:
            options["proj_size"] = _few(rng, 2, hidden)

        def inputs(n: int) -> tuple[Tensor, ...]:
            shape = (min(n, 9), 3) if first else (3, min(n, 9))
            return (_normal(seed, dtype, *shape, size),)

        return Drawn(kind(size, hidden, **options), inputs)

    return made


class Attention(nn.Module):
    """Attention with keys and values of other sizes, or with itself."""

    def __init__(self, inner: nn.MultiheadAttention, weights: bool) -> None:
        super().__init__()
        self.inner, self.weights = inner, weights

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Any:
        return self.inner(query, key, value, need_weights=self.weights)


def attention(rng: Random, dtype: torch.dtype) -> Drawn:
    heads, seed, first = _few(rng, 1, 4), _few(rng, 0, 1000), bool(rng.integers(2))
    size = heads * _few(rng, 2, 7)
    others = [size, size] if rng.integers(2) else [_few(rng, 4, 14), _few(rng, 4, 14)]
    options: dict[str, Any] = {
        "bias": bool(rng.integers(2)),
        "add_bias_kv": bool(rng.integers(2)),
        "batch_first": first,
    }
    inner = nn.MultiheadAttention(size, heads, kdim=others[0], vdim=others[1], **options)

    def inputs(n: int) -> tuple[Tensor, ...]:
        shapes = [(min(n, 9), k) if first else (k, min(n, 9)) for k in (3, 4, 4)]
        sizes = (size, *others)
        return tuple(
            _normal(seed + k, dtype, *shape, width) for k, (shape, width) in enumerate(zip(shapes, sizes, strict=True))
        )

    return Drawn(Attention(inner, bool(rng.integers(2))), inputs)


class Own(nn.Module):
    """Someone's module: matrices and a tensor of three axes, under names that dictionaries use."""

    def __init__(self, size: int, other: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.randn(size, other))
        self.items = nn.Parameter(torch.randn(other, size))
        self.weight = nn.Parameter(torch.randn(size, other, 3))
        self.bias = nn.Parameter(torch.randn(size))
        self.linear = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Any:
        mixed = torch.einsum("...m,mnk->...nk", x, self.weight).sum(-1)
        return self.linear(x @ self.keys @ self.items + self.bias), mixed


def own(rng: Random, dtype: torch.dtype) -> Drawn:
    size, seed = _few(rng, 4, 14), _few(rng, 0, 1000)
    return Drawn(Own(size, _few(rng, 4, 14)), lambda n: (_normal(seed, dtype, n, size),))


KINDS: dict[str, Callable[[Random, torch.dtype], Drawn]] = {
    "Linear": linear,
    **{f"Conv{k}d": convolution(k, False) for k in (1, 2, 3)},
    **{f"ConvTranspose{k}d": convolution(k, True) for k in (1, 2, 3)},
    "Embedding": embedding,
    "EmbeddingBag": bag,
    **{kind.__name__: recurrent(kind) for kind in (nn.RNN, nn.GRU, nn.LSTM)},
    "MultiheadAttention": attention,
    "someone's module": own,
}
