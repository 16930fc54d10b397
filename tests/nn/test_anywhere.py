"""Cores wherever torch and others put them: replicas, shards, offloaded, pruned, parametrized."""

from __future__ import annotations

import copy
import os

import pytest

import tnc

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here
from torch.autograd import forward_ad  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402

from tests.nn.kinds import KINDS, Attention, first  # noqa: E402


@pytest.fixture(params=KINDS)
def case(request, execution):
    """A compressed model, a maker of its dense form, inputs."""
    made, x = KINDS[request.param]
    model = tnc.compress(nn.Sequential(made()), "svd", rank=3, execution=execution)
    return model, lambda: nn.Sequential(made()), x()


def cores_of(model):
    return next(module for name, module in model.named_modules() if name.rpartition(".")[2].startswith("tnc_"))


@pytest.mark.pairwise("tools of others see parameters, not how a layer runs", together=1)
def test_replicas(case):
    """As `DataParallel` makes them: no parameters, but tensors as attributes."""
    model, _, x = case
    modules = list(model.modules())
    copies = [module._replicate_for_data_parallel() for module in modules]
    place = {id(module): k for k, module in enumerate(modules)}
    for module, replica in zip(modules, copies, strict=True):
        for name, child in module._modules.items():
            setattr(replica, name, copies[place[id(child)]])
        for name, p in module._parameters.items():
            if p is not None:
                setattr(replica, name, p.detach() * 1)
        replica._buffers = dict(module._buffers)
    assert torch.allclose(first(copies[0](x)), first(model(x)), atol=1e-6)


@pytest.mark.pairwise("tools of others see parameters, not how a layer runs", together=1)
def test_pruning_a_core(case, tmp_path):
    model, dense, x = case
    before = first(model(x)).detach()
    prune.random_unstructured(cores_of(model), "1", 0.7)
    found = first(model(x))
    assert not torch.allclose(found, before)
    found.sum().backward()
    with torch.no_grad():
        assert torch.allclose(first(model(x)), found, atol=1e-6)
    tnc.nn.save(model, tmp_path / "pruned.safetensors")
    fresh = tnc.nn.load(dense(), tmp_path / "pruned.safetensors")
    assert torch.allclose(first(fresh(x)), found, atol=1e-6)
    assert torch.allclose(first(tnc.nn.uninstall(model)(x)), found, atol=1e-6)


@pytest.mark.pairwise("tools of others see parameters, not how a layer runs", together=1)
@pytest.mark.parametrize("apply", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_a_parametrized_core(case, apply):
    model, _, x = case
    apply(cores_of(model), "0")
    found = first(model(x))
    found.sum().backward()
    with torch.no_grad():
        assert torch.allclose(first(model(x)), found, atol=1e-6)
    assert torch.allclose(first(tnc.nn.uninstall(model)(x)), found, atol=1e-5)


@pytest.mark.pairwise("tools of others see parameters, not how a layer runs", together=1)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_older_weight_norm_on_a_core(case):
    model, _, x = case
    before = first(model(x)).detach()
    nn.utils.weight_norm(cores_of(model), "0")
    assert torch.allclose(first(model(x)), before, atol=1e-5)
    with torch.no_grad():
        cores_of(model).get_parameter("0_g").mul_(2)
    assert not torch.allclose(first(model(x)), before, atol=1e-5)


@pytest.mark.pairwise("tools of others see parameters, not how a layer runs", together=1)
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_accelerate_offloads(case, where, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model, _, x = case
    if isinstance(model[0], Attention):
        pytest.skip("attention takes the parameters of a part that it does not call: accelerate cannot, dense or not")
    before = first(model(x)).detach()
    device = torch.device("cpu")
    if where == "memory":
        accelerate.cpu_offload(model, execution_device=device)
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device=device)
    with torch.no_grad():
        for _ in range(2):
            assert torch.allclose(first(model(x)), before, atol=1e-6)


@pytest.fixture(scope="module")
def group():
    """A process group of one."""
    distributed = pytest.importorskip("torch.distributed")
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.pairwise("shards are of parameters, whichever layer they are of")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("kind", ["linear", "convolution", "lstm"])
def test_fully_sharded(group, kind, original, execution):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    made, x = KINDS[kind][0], KINDS[kind][1]()
    model = tnc.compress(nn.Sequential(made()), "svd", rank=3, execution=execution)
    before = first(model(x)).detach()
    sharded = fsdp.FullyShardedDataParallel(model, use_orig_params=original, device_id=torch.device("cpu"))
    found = first(sharded(x))
    assert torch.allclose(found, before, atol=1e-6)
    found.sum().backward()
    torch.optim.SGD(sharded.parameters(), lr=0.1).step()
    with torch.no_grad():
        assert not torch.allclose(first(sharded(x)), before, atol=1e-6)


@pytest.mark.pairwise("tools of others see parameters, not how a layer runs", together=1)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, of its formulas
def test_forward_mode(case):
    model, _, x = case
    if not x.is_floating_point() or isinstance(model[0], nn.RNNBase | Attention):
        pytest.skip("torch has no forward mode for this layer, dense or not")
    dense, tangent = tnc.nn.uninstall(copy.deepcopy(model)), torch.randn_like(x)
    found = []
    for one in (model, dense):
        with forward_ad.dual_level():
            found.append(forward_ad.unpack_dual(one(forward_ad.make_dual(x, tangent))).tangent)
    assert torch.allclose(*found, atol=1e-5)


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.pairwise("tools of others see parameters, not how a layer runs", together=1)
@pytest.mark.parametrize("kind", ["linear", "convolution", "transposed"])
def test_a_bias_that_is_computed(kind, execution):
    made, x = KINDS[kind][0], KINDS[kind][1]()
    for change in (
        lambda m: prune.l1_unstructured(m, "bias", 0.5),
        lambda m: parametrize.register_parametrization(m, "bias", Doubled()),
    ):
        model = tnc.compress(nn.Sequential(made()), "svd", rank=3, execution=execution)
        before = model(x).detach()
        change(model[0])
        assert not torch.allclose(model(x), before)
        model(x).sum().backward()


def test_another_default_device():
    numbers = torch.tensor([[1, 2]])
    for kind in (nn.Embedding, nn.EmbeddingBag):
        for freeze in (False, True):
            model = tnc.compress(kind(24, 18), "svd", rank=3).eval()
            model = tnc.nn.freeze(model) if freeze else model
            torch.set_default_device("meta")
            try:
                with torch.no_grad():
                    assert model(numbers).device.type == "cpu"
            finally:
                torch.set_default_device(None)


def test_inference_mode_leaves_models_that_train(tmp_path):
    x = torch.randn(3, 24)
    dense = nn.Sequential(nn.Linear(24, 18), nn.Embedding(24, 18, padding_idx=2))
    tnc.nn.save(tnc.compress(copy.deepcopy(dense), "svd", rank=3), tmp_path / "m.safetensors")
    with torch.inference_mode():
        models = [
            tnc.compress(copy.deepcopy(dense), "svd", rank=3),
            tnc.nn.load(copy.deepcopy(dense), tmp_path / "m.safetensors"),
            tnc.nn.tensorize(copy.deepcopy(dense), "svd", 3),
            tnc.nn.uninstall(tnc.compress(copy.deepcopy(dense), "svd", rank=3)),
            tnc.compress(nn.Sequential(nn.Linear(24, 18)), "svd", rank=3),
        ]
    for model in models:
        model[0](x).sum().backward()
        assert all(p.grad is not None for p in model[0].parameters() if not p.is_inference())
        assert not any(p.is_inference() for name, p in model.named_parameters() if "tnc_" in name)


def test_the_world_is_left_alone():
    assert "MASTER_ADDR" not in os.environ
