"""Networks that others trained, in our modules: where compression starts from something real.

VGG-16 and ResNet-56 on CIFAR-10 come out of a package, whose files are pickles of whole models: they are read with
stand-ins for their classes, so that nothing of theirs runs, and only the tensors are kept. ResNets with the paper's
shortcuts (those of akamaster/pytorch_resnet_cifar10) are read from ``cifar_resnets`` in the folder of ``TNC_DATA``.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from benchmarks.papers import networks
from benchmarks.papers.data import DataError, folder
from tnc.data import Package, cache_folder, from_package

__all__ = ["IMAGENET", "UNIT", "Moments", "resnet", "resnet56_b", "tensors", "vgg16_bn"]


class Moments(NamedTuple):
    """What a network was trained to see subtracted and divided by, channel by channel, for pixels from 0 to 1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


UNIT = Moments((0, 0, 0), (1, 1, 1))
"""Of `vgg16_bn` and `resnet56_b`: pixels from 0 to 1 as they are."""
IMAGENET = Moments((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of `resnet`."""

PACKAGE = Package("torch-optim==0.0.4", "04a0ca012ae28d85148f116c593f3fad2fb2e1d27ed788da8ac963078e4b3625")
RESNETS = "cifar_resnets"
FILE = "akamaster_resnet{}-*.safetensors"


def vgg16_bn() -> nn.Module:
    """VGG-16 with batch normalization, 14,991,946 parameters, 92.25 % on the test images of CIFAR-10.

    Raises
    ------
    DataError
        The package cannot be fetched, or is not the pinned one.
    """
    return _packaged(networks.build("vgg16-bn"), "vgg16_cifar10_0.9225_45k")


def resnet56_b() -> nn.Module:
    """ResNet-56 with projections as shortcuts, 855,770 parameters, 93.20 % on the test images of CIFAR-10.

    Raises
    ------
    DataError
        The package cannot be fetched, or is not the pinned one.
    """
    return _packaged(networks.build("resnet56", shortcut="B"), "resnet56_cifar10_0.9320_45k")


def resnet(depth: int, data: str = "cifar10") -> nn.Module:
    """The ResNet of 20, 32 or 56 layers out of ``TNC_DATA``: 91.73, 92.63 and 93.39 % on the test images of CIFAR-10.

    Raises
    ------
    ValueError
        `data` is another data set.
    DataError
        There is no file of that depth, or it is for another network.
    """
    if data != "cifar10":
        raise ValueError(f"no trained ResNets for {data!r}; there are some for 'cifar10'.")
    pattern, root = FILE.format(depth), folder()
    found = sorted((root / RESNETS).glob(pattern)) if root else []
    if not found:
        raise DataError(
            f"no trained ResNet-{depth}: set TNC_DATA to a folder with {RESNETS}/{pattern} "
            f"(TNC_DATA is {root or 'not set'})."
        )
    model = networks.resnet(depth)
    try:
        missing, unexpected = model.load_state_dict(load_file(found[0]), strict=False)
    except (RuntimeError, SafetensorError) as error:
        raise DataError(f"{found[0]} is not a ResNet-{depth}: {error}") from error
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]  # counts, which some leave out
    if missing or unexpected:
        raise DataError(f"{found[0]} is not a ResNet-{depth}: it lacks {missing} and has {unexpected}.")
    return model.eval()


def _packaged(model: nn.Module, name: str) -> nn.Module:
    """`model` with the tensors of one file of the package, out of the cache where they are there."""
    path = cache_folder() / f"{name}-{PACKAGE.sha256[:12]}.safetensors"
    try:
        model.load_state_dict(load_file(path))
        return model.eval()
    except (OSError, SafetensorError, RuntimeError):
        pass  # absent or damaged: made anew

    def read(wheel: Path) -> list[Tensor]:
        with zipfile.ZipFile(wheel) as archive:
            return [tensor for _, tensor in tensors(BytesIO(archive.read(f"torchopt/model/{name}.pth")))]

    found = from_package(PACKAGE, read)
    own = model.state_dict()
    # Its layers stand in the order of ours, under other names.
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in own.values()]:
        raise DataError(f"{name}.pth holds tensors of other shapes than our network.")
    model.load_state_dict(dict(zip(own, found, strict=True)))
    with contextlib.suppress(OSError, SafetensorError):  # a read-only home costs a second download
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), path)
    return model.eval()


class _Inert:
    """Stands in for every class that a pickled model names: it has attributes and does nothing."""


def tensors(file: IO[bytes]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a whole model that `torch.save` pickled, in the order of its layers.

    Whatever the file names that torch does not hold to be data is replaced by an inert class, which takes no
    arguments: no code of the file's choice runs.

    Raises
    ------
    DataError
        The file is not such a model, or it calls a function.
    """
    try:
        stubs: list[Any] = [(_Inert, name) for name in get_unsafe_globals_in_checkpoint(file)]
        file.seek(0)
        with safe_globals(stubs):
            model = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a malformed pickle may raise anything
        raise DataError(f"this pickled model was not read: {error}") from error
    return _walk(model, "")


def _walk(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    held = vars(module)
    for kind in ("_parameters", "_buffers"):
        yield from ((prefix + name, value.data) for name, value in held[kind].items() if value is not None)
    for name, child in held["_modules"].items():
        yield from _walk(child, f"{prefix}{name}.")
