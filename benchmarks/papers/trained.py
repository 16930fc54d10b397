"""Networks that others have trained, loaded into our modules: compression of real weights.

VGG-16 and ResNet-56 on CIFAR-10 come from a package whose files are pickles of whole models. They are read with inert
classes in place of theirs, so that none of their code runs, and only the tensors are kept. ResNets with the shortcuts
of the paper (those of akamaster/pytorch_resnet_cifar10) are read from ``cifar_resnets`` in the folder of ``TNC_DATA``.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Collection, Iterator
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
from tnc.demo.data import Package, from_package
from tnc.settings import cache_folder

__all__ = ["IMAGENET", "UNIT", "Moments", "resnet", "resnet56_b", "start_convolutions", "tensors", "vgg16_bn"]


class Moments(NamedTuple):
    """Mean and standard deviation per channel that the training of a network used, for pixels from 0 to 1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


UNIT = Moments((0, 0, 0), (1, 1, 1))
"""For `vgg16_bn` and `resnet56_b`: pixels from 0 to 1 are not changed."""
IMAGENET = Moments((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""For `resnet`."""

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


@torch.no_grad()
def start_convolutions(model: nn.Module, fresh: Collection[str]) -> nn.Module:
    """Give the convolutions of a VGG of the papers the weights of `vgg16_bn`, and return the model.

    A 1 × 1 convolution gets the middle of the trained 3 × 3 kernel. Convolutions that the trained network lacks stay as
    they are. The papers' convolutions have no bias, so that batch normalization takes it over.

    Parameters
    ----------
    model : torch.nn.Module
    fresh : collection of str
        Numbers of convolutions that keep their random start, as ``"5_1"``.
    """
    given, own = (dict(each.get_submodule("features").named_children()) for each in (vgg16_bn(), model))
    for number in [name.removeprefix("conv") for name in given if name.startswith("conv")]:
        if number in fresh:
            continue
        conv, norm = (given[kind + number] for kind in ("conv", "bn"))
        trained, middle = conv.weight, slice(1, 2)
        small = own[f"conv{number}"].kernel_size == (1, 1)
        own[f"conv{number}"].weight.copy_(trained[:, :, middle, middle] if small else trained)
        own[f"bn{number}"].load_state_dict(norm.state_dict())
        own[f"bn{number}"].running_mean.sub_(conv.bias)
    return model


def resnet56_b() -> nn.Module:
    """ResNet-56 with projections as shortcuts, 855,770 parameters, 93.20 % on the test images of CIFAR-10.

    Raises
    ------
    DataError
        The package cannot be fetched, or is not the pinned one.
    """
    return _packaged(networks.build("resnet56", shortcut="B"), "resnet56_cifar10_0.9320_45k")


def resnet(depth: int, data: str = "cifar10") -> nn.Module:
    """The ResNet of 20, 32 or 56 layers from ``TNC_DATA``: 91.73, 92.63 and 93.39 % on the test images of CIFAR-10.

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
    """Load the tensors of one file of the package into `model`, from the cache if they are there."""
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
    """Used in place of every class that a pickled model names: it has attributes and no code."""


def tensors(file: IO[bytes]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a whole model that `torch.save` pickled, in the order of its layers.

    Every class that torch does not know as plain data is replaced by an inert class, which takes no arguments. Thus no
    code that the file names is run.

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
