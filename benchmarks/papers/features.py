"""Features of CIFAR-10 from the convolutions of a trained VGG-16-BN, cached in files."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.papers.train import Data, Split, device, once, split
from tnc.settings import cache_folder

__all__ = ["COPIES", "features", "images", "standardized", "tail", "tail_maps", "vgg16_bn"]

COPIES = 2
"""Copies of the training images: the first one unchanged, the others flipped and shifted with seeds 1, 2, ..."""


def vgg16_bn(copies: int = COPIES) -> Data:
    """The features of CIFAR-10 from the VGG-16-BN trained on it (92.25 % with its own head), each standardized."""
    from benchmarks.papers import trained

    kept = cache_folder() / "vgg16-bn-cifar10"
    return standardized(features(images(), lambda: trunk(trained.vgg16_bn()), kept, copies))


def images() -> Data:
    """CIFAR-10 with pixels from 0 to 1, as that network takes them."""
    from benchmarks.papers import data, trained

    return split(data.load("cifar10"), mean=trained.UNIT.mean, std=trained.UNIT.std)


def tail_maps(copies: int = COPIES) -> Data:
    """The maps of CIFAR-10 before the last block of that network's convolutions: 512 x 2 x 2 of each image, flat."""
    from benchmarks.papers import trained

    kept = cache_folder() / "vgg16-bn-cifar10-maps"
    return features(images(), lambda: _divided(trained.vgg16_bn())[0], kept, copies)


def tail(head: nn.Module) -> nn.Module:
    """The last block of that network's convolutions as it was trained, and a head after it.

    On the meta device it has no values.
    """
    from benchmarks.papers import networks, trained

    block = _divided(networks.build("vgg16-bn"))[1]
    if not next(block.parameters()).is_meta:
        block.load_state_dict(_divided(trained.vgg16_bn())[1].state_dict())
    return nn.Sequential(OrderedDict(maps=nn.Unflatten(1, (512, 2, 2)), block=block, flat=nn.Flatten(), head=head))


def _divided(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The convolutions before the last block, and those of the last block, with the names that they have."""
    layers = list(model.get_submodule("features").named_children())
    cut = next(k for k, (name, _) in enumerate(layers) if name == "conv5_1")
    first, last = (nn.Sequential(OrderedDict(part)) for part in (layers[:cut], layers[cut:]))
    return first, last


def trunk(model: nn.Module) -> nn.Module:
    """The layers of a network before its ``classifier``."""
    return nn.Sequential(*(layer for name, layer in model.named_children() if name != "classifier"))


def features(images: Data, make: Callable[[], nn.Module], folder: Path, copies: int) -> Data:
    """Compute features in place of images, or read them from the cache.

    What is in the cache is not computed again, so that a second call goes on where the first one ended.

    Parameters
    ----------
    images : Data
    make : callable
        Makes the network that computes features ``[n, d]``; called only if something is not in the cache.
    folder : Path
        The cache.
    copies : int
        Copies of the training images, the unchanged one included.
    """
    model: list[nn.Module] = []

    def of(name: str, part: Split, seed: int | None) -> Tensor:
        path = folder / f"{name}.npy"
        if path.is_file() and len(held := np.load(path, allow_pickle=False)) == len(part.y):
            return torch.from_numpy(held)
        if not model:
            # Channels last: twice as fast on a CPU.
            model.append(make().to(device(), memory_format=torch.channels_last).eval())
        return _computed(model[0], images, part, seed, path)

    parts = [Split(of(name, part, None), part.y) for name, part in zip(Data._fields, images[:3], strict=False)]
    x, y = [parts[0].x], [parts[0].y]
    for copy in range(1, copies):
        x.append(of(f"train-{copy}", images.train, copy))
        y.append(images.train.y)
    none = torch.zeros(1, device=device())
    return Data(Split(torch.cat(x), torch.cat(y)), parts[1], parts[2], none, none + 1)


def standardized(data: Data) -> Data:
    """Scale every feature to mean 0 and deviation 1 on the training split; a constant feature becomes 0."""
    mean, std = data.train.x.mean(0), data.train.x.std(0)
    scale = torch.where(std > 0, 1 / std, torch.zeros_like(std))
    return data._replace(
        **{name: Split((part.x - mean) * scale, part.y) for name, part in zip(data._fields, data[:3], strict=False)}
    )


@torch.inference_mode()
def _computed(model: nn.Module, images: Data, part: Split, seed: int | None, path: Path) -> Tensor:
    """Compute the features in the order of the split, and save them at `path`.

    They are written to another file that is then renamed, so that no incomplete file is ever read.
    """
    batches = (x.contiguous(memory_format=torch.channels_last) for x, _ in once(images, part, seed=seed))
    found = torch.cat([model(x).flatten(1).cpu() for x in batches])
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.stem}-{os.getpid()}.npy")
    np.save(beside, found.numpy())
    beside.replace(path)
    return found
