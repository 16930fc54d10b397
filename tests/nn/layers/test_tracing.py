"""What takes a model apart: fx, export, compile, jit; and what of it cannot be done says so."""

from __future__ import annotations

import copy
import io
import pickle

import pytest

import tnc
from tnc.errors import WeightError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here
from torch.export import Dim, export  # noqa: E402


@pytest.fixture(params=["linear", "convolution", "transposed"])
def case(request, execution):
    made, x = {
        "linear": (lambda: nn.Sequential(nn.Linear(24, 18), nn.ReLU(), nn.Linear(18, 12)), torch.randn(3, 24)),
        "convolution": (lambda: nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU()), torch.randn(3, 8, 6, 6)),
        "transposed": (lambda: nn.Sequential(nn.ConvTranspose1d(8, 12, 3), nn.ReLU()), torch.randn(3, 8, 6)),
    }[request.param]
    model = tnc.compress(made(), "svd", rank=3, execution=execution)
    return model, made, x


def test_a_symbolic_trace_takes_layers_as_leaves(case):
    model, _, x = case
    traced = torch.fx.symbolic_trace(model)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert calls == [name for name, _ in model.named_children()]
    assert torch.allclose(traced(x), model(x), atol=1e-6)
    table = tnc.compress(nn.Sequential(nn.Embedding(24, 18)), "svd", rank=3)
    numbers = torch.tensor([[1, 2]])
    assert torch.equal(torch.fx.symbolic_trace(table)(numbers), table(numbers))


@pytest.mark.pairwise("freezing and the exporter do not see which module it is")
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_exported_with_any_batch(case, strict, frozen):
    model, _, x = case
    model = tnc.nn.freeze(model) if frozen else model
    program = export(model.eval(), (x,), dynamic_shapes={"input": {0: Dim("batch", max=4096)}}, strict=strict).module()
    for batch in (2, 3, 300):
        inputs = torch.randn(batch, *x.shape[1:])
        assert torch.allclose(program(inputs), model(inputs), atol=1e-5)


def loaded(model, made, folder):
    tnc.nn.save(model, folder / "model.safetensors")
    found = tnc.load(folder / "model.safetensors")
    return tnc.install(made(), found)


WAYS = {
    "load": loaded,
    "deepcopy": lambda model, made, folder: copy.deepcopy(model),
    "pickle": lambda model, made, folder: pickle.loads(pickle.dumps(model)),
    "thaw": lambda model, made, folder: tnc.nn.unfreeze(tnc.nn.freeze(model)),
}


@pytest.mark.pairwise("the way a model came by is over before it is compiled")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_compiled_whole_after_every_way_to_come_by_a_model(case, way, tmp_path):
    model, made, x = case
    again = way(model, made, tmp_path)
    torch._dynamo.reset()
    compiled = torch.compile(again, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(x), model(x), atol=1e-5)
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in again.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_jit(case):
    model, _, x = case
    with pytest.raises(WeightError, match=r"torch\.compile or torch\.export, or make it dense"):
        torch.jit.script(model)
    traced = torch.jit.trace(model, x, check_trace=False)
    assert torch.allclose(traced(x), model(x), atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning")
def test_the_older_onnx_exporter_says_so(case):
    model, _, x = case
    with pytest.raises(WeightError, match=r"dynamo=True"):
        torch.onnx.export(model, (x,), io.BytesIO(), dynamo=False)
