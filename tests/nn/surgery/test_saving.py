"""`save` and `load` by torch's own protocol: what a state dict has comes back, and a refused load changes nothing."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest

import tnc
from tnc.errors import CheckpointError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper  # noqa: E402


class Counted(nn.Module):
    """State that is no tensor, beside a weight."""

    def __init__(self):
        super().__init__()
        self.inner, self.seen = nn.Linear(24, 18), {"steps": 0, "names": []}

    def get_extra_state(self):
        return self.seen

    def set_extra_state(self, state):
        self.seen = state

    def forward(self, x):
        return self.inner(x)


class Renamed(nn.Module):
    """A model whose state dict has other names, by hooks."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm = nn.Linear(24, 18), nn.BatchNorm1d(18)
        self.loaded = []
        self.register_state_dict_post_hook(self.rename)
        self.register_load_state_dict_pre_hook(self.back)
        self.register_load_state_dict_post_hook(lambda module, keys: self.loaded.append(keys))

    @staticmethod
    def rename(module, state, prefix, _):
        for name in [n for n in state if n.startswith(f"{prefix}norm.")]:
            state[name.replace("norm.", "old_norm.")] = state.pop(name)

    @staticmethod
    def back(module, state, prefix, *_):
        for name in [n for n in state if n.startswith(f"{prefix}old_norm.")]:
            state[name.replace("old_norm.", "norm.")] = state.pop(name)

    def forward(self, x):
        return self.norm(self.inner(x))


class Halved(nn.Module):
    """A module that saves its parameter in another unit."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = nn.Linear(24, 18), nn.Parameter(torch.rand(18))

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}scale"] = self.scale.detach() / 2

    def _load_from_state_dict(self, state, prefix, *args):
        state[f"{prefix}scale"] = state[f"{prefix}scale"] * 2
        super()._load_from_state_dict(state, prefix, *args)

    def forward(self, x):
        return self.inner(x) * self.scale


class Plain(nn.Module):
    """An overridden ``state_dict`` without torch's arguments."""

    def __init__(self):
        super().__init__()
        self.inner, self.left_out = nn.Linear(24, 18), nn.Parameter(torch.zeros(1))

    def state_dict(self):
        return {name: value for name, value in super().state_dict().items() if name != "left_out"}

    def forward(self, x):
        return self.inner(x)


def wrapped():
    return nn.Sequential(checkpoint_wrapper(nn.Sequential(nn.Linear(24, 18), nn.ReLU())), nn.Linear(18, 18))


@pytest.mark.parametrize("kind", [Counted, Renamed, Halved, Plain, wrapped])
@pytest.mark.parametrize("over", ["fresh", "compressed", "meta"])
def test_torchs_protocol_is_kept(kind, over, tmp_path):
    x = torch.randn(4, 24)
    model = tnc.compress(kind(), "svd", rank=3)
    model(x)
    model.eval()
    if kind is Counted:
        model.seen = {"steps": 7, "names": ["a", "b"]}
    tnc.nn.save(model, tmp_path / "model.safetensors")
    fresh = kind()
    if over == "compressed":
        tnc.compress(fresh, "svd", rank=5)
    elif over == "meta" and kind is not Plain:
        fresh = fresh.to("meta")
    held = {name: p for name, p in fresh.named_parameters() if "tnc_" not in name and not p.is_meta}
    tnc.nn.load(fresh, tmp_path / "model.safetensors").eval()
    assert torch.equal(fresh(x), model(x))
    assert getattr(fresh, "seen", None) == getattr(model, "seen", None)
    assert kind is not Renamed or len(fresh.loaded) == 1
    now = dict(fresh.named_parameters())
    assert all(now[name] is p for name, p in held.items() if name in now)  # optimizers hold them


class Odd:
    pass


def test_state_that_needs_code_to_be_read_is_refused(tmp_path):
    model = tnc.compress(Counted(), "svd", rank=3)
    model.seen = {"what": Odd()}
    with pytest.raises(CheckpointError, match=r"_extra_state: it holds a Odd.*get_extra_state return tensors, numbers"):
        tnc.nn.save(model, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def normed():
    return nn.Sequential(nn.Linear(24, 18), nn.BatchNorm1d(18), nn.Linear(18, 6))


def test_as_torch_loads(tmp_path):
    """A count of batches may be missing; what else differs is said, with what to do."""
    model = normed().eval()
    state = {name: x for name, x in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    checkpoint = tnc.compress_weights(state, "svd", rank=6)
    fresh = tnc.install(normed().eval(), checkpoint)
    x = torch.randn(4, 24)
    assert torch.allclose(fresh(x), tnc.nn.uninstall(copy.deepcopy(fresh))(x), atol=1e-5)
    assert torch.equal(fresh[1].running_var, model[1].running_var)
    with pytest.raises(CheckpointError, match=r"unexpected: more\. strict=False"):
        tnc.install(normed(), tnc.compress_weights({**state, "more": torch.ones(3)}, "svd", rank=6))
    del state["1.running_var"]
    checkpoint = tnc.compress_weights(state, "svd", rank=6)
    checkpoint.save(tmp_path / "less.safetensors")
    with pytest.raises(CheckpointError, match=r"missing from the checkpoint: 1\.running_var\. strict=False"):
        tnc.nn.load(normed(), tmp_path / "less.safetensors")
    tnc.nn.load(normed(), tmp_path / "less.safetensors", strict=False)


class Refusing(nn.Linear):
    """Takes part of a state, and then no more."""

    def _load_from_state_dict(self, state, prefix, *args):
        super()._load_from_state_dict(state, prefix, *args)
        raise RuntimeError("not this one")


@pytest.mark.parametrize("start", ["dense", "factorized"])
def test_a_refused_load_changes_nothing(planted, start):
    def made():
        return nn.Sequential(
            nn.Linear(24, 18), nn.BatchNorm1d(18), Refusing(18, 6), nn.Embedding(24, 18, padding_idx=1)
        )

    checkpoint = tnc.compress_weights(made().state_dict(), [tnc.Rule("0.weight", "svd", 3), tnc.Rule("3.*", "svd", 3)])
    model = made()
    if start == "factorized":
        tnc.compress(model, [tnc.Rule("0.weight", "svd", 5), tnc.Rule("2.weight", "svd", 2)])
    before = planted.snapshot(model)
    with pytest.raises(CheckpointError, match="not this one"):
        tnc.install(model, checkpoint)
    assert planted.snapshot(model) == before


def test_loading_makes_no_dense_weight(tmp_path):
    """A file of 50 kB for weights of 400 MB: what the process takes at most is a small part of that."""
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(5000, 5000, bias=False) for _ in range(4)))
    torch.manual_seed(0)
    tnc.nn.tensorize(model, "mpo(order=4)", 2, device="cpu")
    tnc.nn.save(model, tmp_path / "small.safetensors")
    assert (tmp_path / "small.safetensors").stat().st_size < 100_000
    code = f"""
import resource, torch, tnc
from torch import nn
with torch.device("meta"):
    fresh = nn.Sequential(*(nn.Linear(5000, 5000, bias=False) for _ in range(4)))
import tnc.nn
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tnc.nn.load(fresh, {str(tmp_path / "small.safetensors")!r}, execution="factorized")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout) < 100_000  # kilobytes: one dense weight
