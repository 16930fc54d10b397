"""Three ways to run a factorized layer: the cores alone, the weight rebuilt, or whichever is cheaper."""

from __future__ import annotations

import copy
import time

import pytest

import tnc

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from tnc.nn.layers.cores import Cores  # noqa: E402


@pytest.fixture
def rebuilt(monkeypatch):
    """How many weights were rebuilt so far."""
    calls, made = [], Cores.rebuilt
    monkeypatch.setattr(Cores, "rebuilt", lambda self, *cores: calls.append(self) or made(self, *cores))
    return calls


def test_factorized_never_rebuilds_a_matrix(planted, method, rebuilt):
    small = planted.compressed(planted.plant(nn.Linear(24, 18), method), method, execution="factorized")
    for batch in (1, 7, 100, 3000):
        small(torch.randn(batch, 24)).sum().backward()
    assert not rebuilt


def test_evaluation_keeps_the_weight_until_a_core_changes(planted, method, rebuilt):
    small = planted.compressed(planted.plant(nn.Linear(24, 18), method), method, execution="dense").eval()
    x = torch.randn(5, 24)
    with torch.no_grad():
        before = [small(x) for _ in range(3)]
        assert len(rebuilt) == 1
        next(iter(small.tnc_weight)).mul_(2)  # as an optimizer does
        assert torch.allclose(small(x) - small.bias, 2 * (before[0] - small.bias), atol=1e-5)
        assert len(rebuilt) == 2
        small.load_state_dict(small.state_dict())
        small(x)
        assert len(rebuilt) == 2  # the same values
        next(iter(small.tnc_weight)).data.mul_(0)
        assert torch.allclose(small(x), small.bias.expand(5, -1))


@pytest.mark.pairwise("kinds and executions decide what is kept, methods only how much")
@pytest.mark.parametrize("kind", [lambda: nn.Linear(24, 18), lambda: nn.Conv2d(6, 8, 3), lambda: nn.GRU(24, 18)])
def test_the_report_counts_what_evaluation_keeps(planted, method, execution, kind):
    small = planted.compressed(planted.plant(kind(), method), method, execution=execution).eval()
    promised = sum(row.kept for row in small.tnc_report.rows)
    with torch.no_grad():
        for size in (1, 200, 70_000):
            small(torch.randn(size, *((6, 3, 3) if isinstance(small, nn.Conv2d) else (1, 24))))
    made = [held.kept for held in small.modules() if isinstance(held, Cores)]
    kept = sum(held.value.numel() * held.value.element_size() for held in made if held)
    assert kept <= promised  # at some size that was not tried it may keep more
    assert kept == promised or execution == "auto"
    assert (promised == 0) == (execution == "factorized") or execution == "auto"


def test_a_weight_kept_is_forgotten_by_casts(planted, method):
    """Cast there and back, a core may lie at the same address with the same version, rounded."""
    small = planted.compressed(planted.plant(nn.Linear(24, 18), method), method, execution="dense").eval()
    with torch.no_grad():
        small(torch.randn(5, 24))
        small.half().float()
        assert small.tnc_weight.kept is None


@pytest.mark.parametrize("kind", [lambda: nn.Linear(24, 18), lambda: nn.Embedding(24, 18), lambda: nn.GRU(24, 18)])
def test_factorized_keeps_no_weight(planted, method, kind):
    small = planted.compressed(planted.plant(kind(), method), method, execution="factorized").eval()
    x = torch.arange(5) if isinstance(small, nn.Embedding) else torch.randn(5, 24)
    with torch.no_grad():
        small(x), small(x)
    kept = [made.kept for made in small.modules() if isinstance(made, Cores)]
    assert kept and all(weight is None for weight in kept)


def test_training_keeps_inputs_and_cores_alone(planted, method, execution):
    """Saved for the backward pass: at most 1.2 times what a dense layer saves, and the cores."""
    small = planted.compressed(planted.plant(nn.Linear(24, 18), method), method, execution=execution)
    x = torch.randn(50, 24, requires_grad=True)
    cores = {core.data_ptr() for core in small.tnc_weight}
    assert sum(t.numel() for t in saved(small, x) if t.data_ptr() not in cores) <= 1.2 * x.numel()


@pytest.mark.pairwise("methods, kinds and executions are told apart at different places")
@pytest.mark.parametrize("execution", ["auto", "factorized"])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("method", ["svd", "tucker", "mpo(order=2)", "ring(order=1)"])
def test_training_a_convolution_keeps_its_input_and_cores_alone(planted, method, kind, execution):
    small = planted.compressed(planted.plant(kind(16, 24, 3), method), method, execution=execution)
    x = torch.randn(4, 16, 14, 14, requires_grad=True)
    cores = {core.data_ptr() for core in small.tnc_weight}
    kept = {t.data_ptr(): t.numel() for t in saved(small, x) if t.data_ptr() not in cores}
    through = small._tnc.schedule.plan(4 * 14 * 14, True)
    rebuilt = 0 if through else 1.5 * small.weight.numel()  # the dense layer has its weight, and this one's steps
    assert x.numel() <= sum(kept.values()) <= 1.2 * x.numel() + rebuilt


@pytest.mark.parametrize("transposed", [False, True])
def test_a_convolution_is_planned_for_the_places_of_its_kernel(transposed):
    kind = tnc.nn.ConvTranspose2d if transposed else tnc.nn.Conv2d
    layer, asked = kind(64, 64, 3, stride=4, padding=1, decomposition="tucker", rank=0.1), []
    layer._tnc.schedule = type("Asked", (), {"plan": lambda self, size, *how: asked.append(size)})()
    layer(torch.randn(2, 64, 32, 16))
    assert asked == [2 * 32 * 16 if transposed else 2 * 8 * 4]


def test_auto_spares_small_batches_the_weight(planted, method, rebuilt):
    """Rebuilding a large weight for one row costs far more than contracting the row."""
    layer = nn.Linear(1024, 1024)
    tnc.compress(layer, method, rank=0.02)
    layer(torch.randn(1, 1024))
    assert not rebuilt
    assert layer._tnc.execution == "auto"


def test_auto_changes_its_mind_with_the_batch():
    """A Tucker matrix is rebuilt for a large batch, and never for a single row that its weight would dwarf."""
    layer = tnc.nn.Linear(2048, 2048, decomposition="tucker", rank=(16, 16, 16, 16))
    for training in (False, True):
        assert layer._tnc.schedule.plan(1, training) is not None
    one, many = (layer._tnc.schedule.plan(size, True) for size in (1, 65536))
    assert one != many


@pytest.mark.parametrize("batch", [1, 5, 9, 300])
def test_all_ways_agree(planted, method, batch):
    model = planted.plant(nn.Sequential(nn.Linear(24, 36), nn.Tanh(), nn.Linear(36, 18)).double(), method)
    x = torch.randn(batch, 24, dtype=torch.float64)
    ways = [planted.compressed(model, method, execution=execution) for execution in ("auto", "dense", "factorized")]
    assert planted.gap([way(x) for way in ways], [model(x)] * 3) < 1e-12
    assert list(ways[0].state_dict()) == list(ways[1].state_dict()) == list(ways[2].state_dict())


def test_the_choice_survives_copies_and_casts(planted, rebuilt):
    small = planted.compressed(planted.plant(nn.Linear(24, 18)), execution="factorized")
    x = torch.randn(5, 24)
    copy.deepcopy(small)(x), small.double()(x.double())
    assert not rebuilt


@pytest.mark.parametrize("batch", [1, 8, 64])
@pytest.mark.parametrize("method", ["tucker", "mpo(order=3)", "mpo(order=4)"])
def test_no_batch_explodes(method, batch):
    """Contracted in a bad order, a Tucker matrix of this size takes a minute and 100 GB elsewhere."""
    layer = tnc.nn.Linear(1024, 4096, decomposition=method, rank=0.02, execution="factorized")
    x = torch.randn(batch, 1024)
    with torch.no_grad():
        layer(x)
        start = time.perf_counter()
        found = layer(x)
        seconds = time.perf_counter() - start
    assert seconds < 3
    assert torch.allclose(found, nn.functional.linear(x, layer.weight, layer.bias), atol=1e-5)
    largest = max(tensor.numel() for tensor in saved(layer, x))
    assert largest <= max(1024 * 4096, 4 * batch * 4096)  # nothing larger than the dense weight


def saved(layer, x):
    """What the backward pass keeps of a forward pass."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    return kept


def test_parents_read_the_weight(planted, method, execution):
    model = planted.plant(nn.Linear(24, 18).double(), method)
    small = planted.compressed(model, method, execution=execution)
    assert planted.gap(small.weight, model.weight) < 1e-12
    assert small.weight.requires_grad and small.weight.dtype == torch.float64
    small.weight = nn.Parameter(torch.zeros(18, 24, dtype=torch.float64))
    assert type(small) is nn.Linear and not small.weight.any()


@pytest.mark.pairwise("autocast casts tensors, whichever layer and plan they are of")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["linear", "conv", "embedding", "gru", "attention"])
def test_autocast(planted, method, execution, dtype, name):
    """Outputs have the dense model's dtype; cores, gradients and the rebuilt weight keep theirs."""
    kind, x = {
        "linear": (lambda: nn.Linear(24, 18), torch.randn(5, 24)),
        "conv": (lambda: nn.Conv2d(8, 12, 3), torch.randn(2, 8, 7, 7)),
        "embedding": (lambda: nn.Embedding(24, 18), torch.arange(24)),
        "gru": (lambda: nn.GRU(24, 12), torch.randn(5, 3, 24)),
        "attention": (lambda: nn.TransformerEncoderLayer(24, 4, 48, 0.0), torch.randn(5, 3, 24)),
    }[name]
    model = planted.plant(kind(), method)
    small = planted.compressed(model, method, execution=execution)
    with torch.autocast("cpu", dtype=dtype):
        found, expected = (one(x)[0] if name == "gru" else one(x) for one in (small, model))
        weights = [m.weight for m in small.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    assert all(weight.dtype == torch.float32 for weight in weights)
    assert planted.gap(found, expected) < 4 * torch.finfo(dtype).eps
    planted.total(found).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for n, p in small.named_parameters() if "hh" not in n)


@pytest.mark.parametrize("place", ["cuda", "cupy"])
def test_fits_run_where_they_are_asked_to_on_cuda(planted, method, place):
    if place == "cupy":
        pytest.importorskip("cupy", reason="needs cupy")
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    model = planted.plant(nn.Sequential(nn.Linear(24, 18), nn.Tanh(), nn.GRU(18, 12)).double(), method)
    x = torch.randn(5, 24, dtype=torch.float64)
    on_host = planted.compressed(model, method, backend="torch:cuda" if place == "cuda" else place)
    assert {p.device.type for p in on_host.parameters()} == {"cpu"}
    assert planted.gap(on_host(x)[0], model(x)[0]) < 1e-12


@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_models_on_cuda(planted, method, execution, tmp_path):
    model = nn.Sequential(nn.Linear(24, 18), nn.Tanh(), nn.GRU(18, 12)).double()
    small = planted.agree(model.to("cuda"), method, torch.randn(5, 24, device="cuda"), execution=execution)
    assert {p.device.type for p in small.parameters()} == {"cuda"}
    x = torch.randn(5, 24, dtype=torch.float64)
    expected = small(x.to("cuda"))[0]
    assert planted.gap(copy.deepcopy(small).cpu()(x)[0], expected.cpu()) < 1e-12
    tnc.nn.save(small, tmp_path / "small.safetensors")
    fresh = tnc.nn.load(
        nn.Sequential(nn.Linear(24, 18), nn.Tanh(), nn.GRU(18, 12)).double().cuda(), tmp_path / "small.safetensors"
    )
    assert torch.equal(fresh(x.cuda())[0], expected)
