"""Tensors that are no plain arrays of floats: beside factorized weights they are no matter, under a rule they are."""

from __future__ import annotations

import copy
from io import BytesIO

import numpy as np
import pytest

import tnc
from tnc import storage
from tnc.errors import CheckpointError, WeightError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here
from torch.nn.utils import parametrizations  # noqa: E402

from tnc.nn.surgery.packing import packed, unpacked  # noqa: E402


class Wrapped(torch.Tensor):
    """A tensor subclass with a protocol of its own, as quantized weights of others are."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, requires_grad=False)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner, _, size, stride):
        return Wrapped(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        plain = [a.inner if isinstance(a, Wrapped) else a for a in args]
        found = func(*plain, **(kwargs or {}))
        return Wrapped(found) if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default) else found


def sparse():
    return torch.eye(6).to_sparse()


TENSORS = {
    "sparse": sparse,
    "csr": lambda: torch.eye(6).to_sparse_csr(),
    "float8": lambda: torch.randn(6, 6).to(torch.float8_e4m3fn),
    "quantized": lambda: torch.quantize_per_tensor(torch.randn(6, 6), 0.1, 0, torch.quint8),
    "conjugated": lambda: torch.randn(6, 6, dtype=torch.complex64).conj(),
    "subclass": lambda: Wrapped(torch.randn(6, 6)),
}


class Odd(nn.Module):
    def __init__(self, kind, parameter):
        super().__init__()
        self.linear, self.other = nn.Linear(24, 18), nn.Linear(18, 4)
        value = TENSORS[kind]()
        if parameter:
            self.odd = nn.Parameter(value, requires_grad=False)
        else:
            self.register_buffer("odd", value)

    def forward(self, x):
        return self.other(self.linear(x))


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*quantiz.*:DeprecationWarning", "ignore:.*quantiz.*:UserWarning", "ignore:.*Sparse CSR.*:UserWarning"
)


@pytest.mark.parametrize("parameter", [False, True])
@pytest.mark.parametrize("kind", TENSORS)
def test_it_is_no_matter_where_no_rule_is_about_it(kind, parameter, tmp_path):
    model, x = Odd(kind, parameter), torch.randn(3, 24)
    kept = model.odd
    tnc.compress(model, [tnc.Rule("linear.*", "svd", 3)])
    assert model.odd is kept
    path = tmp_path / "odd.safetensors"
    if kind == "subclass":
        with pytest.raises(CheckpointError, match=r"odd: it holds a tensor of the class Wrapped.*running code"):
            tnc.nn.save(model, path)
        return
    tnc.nn.save(model, path)
    fresh = tnc.nn.load(Odd(kind, parameter), path)
    assert torch.equal(fresh(x), model(x)) and fresh.odd.dtype == kept.dtype and fresh.odd.layout == kept.layout
    plain = (t.dequantize() if t.is_quantized else t.to(torch.complex64).to_dense() for t in (fresh.odd, kept))
    assert torch.equal(*plain)


@pytest.mark.parametrize("kind", [name for name in TENSORS if name != "conjugated"])
def test_a_rule_that_names_it_says_so_and_a_catch_all_passes_over(kind):
    model = Odd(kind, parameter=True)
    before = dict(model.named_parameters())
    with pytest.raises(WeightError, match=r"odd cannot be factorized: it is .*tnc\.Rule\('odd', None\)"):
        tnc.compress(model, [tnc.Rule("odd", "svd", 2), tnc.Rule("linear.*", "svd", 3)])
    assert dict(model.named_parameters()) == before
    rows = {row.name: row for row in tnc.compress(model, "svd", rank=3).tnc_report.rows}
    assert rows["odd"].method == "dense" and rows["odd"].note.startswith("it is ")
    assert rows["linear.weight"].method == "svd"


def test_weights_that_are_computed(tmp_path):
    """A catch-all passes over a weight-normed convolution; made a parameter it is compressed, saved and loaded."""

    def made():
        torch.manual_seed(0)
        return nn.Sequential(parametrizations.weight_norm(nn.Conv1d(8, 12, 3)), nn.Flatten(), nn.Linear(48, 6))

    model, x = made(), torch.randn(2, 8, 6)
    rows = {row.name: row for row in tnc.compress(copy.deepcopy(model), "svd", rank=3).tnc_report.rows}
    assert "remove_parametrizations" in rows["0.weight"].note and rows["2.weight"].method == "svd"
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    tnc.compress(model, "svd", rank=3)
    tnc.nn.save(model, tmp_path / "m.safetensors")
    fresh = tnc.nn.load(made(), tmp_path / "m.safetensors")
    assert torch.equal(fresh(x), model(x)) and isinstance(fresh[0], tnc.nn.Conv1d)


@pytest.mark.parametrize("kind", TENSORS)
def test_arrays_beside_are_no_matter(kind, tmp_path):
    odd, weight = TENSORS[kind](), torch.randn(24, 18)
    found = tnc.compress_weights({"w": weight, "odd": odd}, [tnc.Rule("w", "svd", 3)])
    assert [row.name for row in found.report.rows] == ["w"] and found["odd"] is odd
    if kind == "conjugated":
        return
    assert [row.name for row in tnc.compress_weights({"w": weight, "odd": odd}, "svd", rank=3).report.rows] == ["w"]
    with pytest.raises(WeightError, match=r"odd is .*: only plain arrays can be factorized"):
        tnc.compress_weights({"w": weight, "odd": odd}, [tnc.Rule("odd", "svd", 3)])
    with pytest.raises(CheckpointError, match=r"odd is .*tnc\.nn\.save"):
        found.save(tmp_path / "odd.safetensors")


SPARSE = {
    "coo": lambda x: x.to_sparse(),
    "csr": lambda x: x.to_sparse_csr(),
    "csc": lambda x: x.to_sparse_csc(),
    "bsr": lambda x: x.to_sparse_bsr((2, 2)),
    "bsc": lambda x: x.to_sparse_bsc((2, 2)),
}


@pytest.mark.parametrize("make", SPARSE.values(), ids=SPARSE)
def test_indices_outside_of_a_sparse_tensor_are_refused(make):
    """Torch would read and write past the end of the memory, or say so at some later time."""
    data = packed("x", make(torch.eye(6)))
    assert torch.equal(unpacked("x", data).to_dense(), torch.eye(6))
    arrays, header, narrow = storage.read(BytesIO(data.tobytes()))
    for name, array in arrays.items():
        if array.dtype != np.int64:
            continue
        file, moved = BytesIO(), array.copy()
        moved.flat[-1] = 99
        storage.write(file, arrays | {name: moved}, {"tnc.packed": header["tnc.packed"]}, narrow)
        with pytest.raises(CheckpointError, match="x cannot be read: RuntimeError"):
            unpacked("x", np.frombuffer(file.getvalue(), np.uint8))
