"""A task that a small network learns in a second: ten clouds of points to tell apart."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tnc

QUIET = {"progress": False}


def blobs(n, seed, spread=1.2):
    """Ten Gaussian clouds in 32 dimensions, the same for every seed; as many of each as chance will."""
    centres = torch.randn(10, 32, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (n,), generator=generator)
    return TensorDataset(centres[labels] + spread * torch.randn(n, 32, generator=generator), labels)


def loader(n=512, seed=1, batch=64, shuffle=True, **options):
    return DataLoader(blobs(n, seed), batch, shuffle=shuffle, **options)


def net(dtype=torch.float32, dropout=0.0):
    return nn.Sequential(
        *(nn.Linear(32, 96), nn.ReLU(), nn.Dropout(dropout), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10))
    ).to(dtype)


def small(model=None, method="mpo(order=2)", rank=2):
    return tnc.compress(copy.deepcopy(model or net()), [tnc.Rule("[03].weight", method, rank)])


def state(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def correct(model, data):
    model.eval()
    x, y = data.dataset.tensors
    return float((model(x).argmax(1) == y).float().mean())
