"""`torch.compile` without graph breaks, and `torch.export`: plans are made before any forward."""

from __future__ import annotations

import shutil

import pytest

import tnc

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here
from torch._dynamo.utils import counters  # noqa: E402
from torch.export import Dim, export  # noqa: E402

WAYS = pytest.mark.parametrize("execution", ["dense", "factorized"])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(24, 4, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x)[0]


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(4, 24, 40))

    def forward(self, x):
        return torch.einsum("bi,eoi->ebo", x, self.up)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(24, 18, padding_idx=3), nn.Linear(18, 24)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.table(x))


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(24, 18), nn.ReLU(), nn.Linear(18, 24)), lambda: torch.randn(5, 24)),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, padding_mode="circular"), nn.ConvTranspose2d(12, 8, 3)),
        lambda: torch.randn(2, 8, 6, 6),
    ),
    "embedding": (Tied, lambda: torch.randint(0, 24, (3, 4))),
    "attention": (Attention, lambda: torch.randn(2, 5, 24)),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(24, 4, 48, 0.0, batch_first=True),
        lambda: torch.randn(2, 5, 24),
    ),
    "experts": (Experts, lambda: torch.randn(5, 40)),
    "cell": (lambda: nn.GRUCell(24, 12), lambda: torch.randn(5, 24)),
}
each_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()


def made(planted, name, method="svd", execution="auto"):
    kind, x = MODELS[name]
    return planted.compressed(planted.plant(kind(), method), method, execution=execution), x()


@WAYS
@each_model
def test_compiled(planted, name, execution):
    model, x = made(planted, name, execution=execution)
    expected = model(x)
    planted.total(expected).backward()
    grads = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    planted.total(found).backward()
    assert planted.gap(found, expected) < 1e-5
    assert planted.gap({key: model.get_parameter(key).grad for key in grads}, grads) < 1e-5
    assert counters["stats"]["unique_graphs"] == 1


@WAYS
@pytest.mark.parametrize("method", ["mpo(order=2)", "tucker"])
def test_compiled_with_other_methods(planted, method, execution):
    model, x = made(planted, "linear", method, execution)
    assert planted.gap(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x)) < 1e-5


def test_compiled_under_autocast(planted):
    model, x = made(planted, "linear")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = compiled(x), model(x)
    assert planted.gap(found, expected) < 4 * torch.finfo(torch.bfloat16).eps


def test_batches_of_all_sizes_need_few_graphs(planted):
    """A plan for every range of batches, not for every batch."""
    model, _ = made(planted, "linear")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 5, 9, 17, 100, 300, 1000, 4000):
        x = torch.randn(batch, 24)
        assert planted.gap(compiled(x), model(x)) < 1e-5
    assert counters["stats"]["unique_graphs"] <= 5


def test_training_does_not_recompile(planted):
    model, x = made(planted, "linear")
    compiled, optimizer = (
        torch.compile(model, fullgraph=True, backend="aot_eager"),
        torch.optim.SGD(model.parameters(), lr=0.1),
    )
    losses = []
    for _ in range(4):
        loss = compiled(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and counters["stats"]["unique_graphs"] == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch's own, when it loads the compiler
def test_compiled_to_machine_code(planted, tmp_path, monkeypatch):
    """One layer, in this process, without headers compiled for later: most of the time is the compiler's."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    from torch._inductor import config

    model = planted.plant(nn.Sequential(nn.Linear(24, 18), nn.ReLU()), "mpo(order=2)")
    model, x = planted.compressed(model, "mpo(order=2)", execution="factorized"), torch.randn(5, 24)
    with torch.no_grad(), config.patch(compile_threads=1, cpp_cache_precompile_headers=False):
        found = torch.compile(model, fullgraph=True, backend="inductor")(x)
    assert planted.gap(found, model(x)) < 1e-5


@WAYS
@each_model
def test_exported(planted, name, execution):
    model, x = made(planted, name, execution=execution)
    program = export(model.eval(), (x,))
    assert planted.gap(program.module()(x), model(x)) < 1e-5
    assert not {"weight", "in_proj_weight"} & set(program.state_dict)  # the cores travel, not the weight


@pytest.mark.parametrize("execution", ["auto", "dense", "factorized"])
@pytest.mark.parametrize("name", ["linear", "conv", "embedding"])
def test_exported_for_every_batch(planted, name, execution):
    model, x = made(planted, name, execution=execution)
    program = export(model.eval(), (x,), dynamic_shapes=({0: Dim("batch", max=4096)},)).module()
    for batch in (1, 2, 7, 300):
        inputs = x[:1].expand(batch, *x.shape[1:]).contiguous()
        assert planted.gap(program(inputs), model(inputs)) < 1e-5


def test_a_layer_from_scratch_compiles(planted):
    layer, x = tnc.nn.Linear(24, 18, decomposition="mpo(order=2)", rank=3), torch.randn(5, 24)
    assert planted.gap(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x)) < 1e-5
