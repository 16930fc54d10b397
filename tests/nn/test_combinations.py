"""What nobody had put together: containers, frozen cores and other tools, shallow copies, parametrizations, parts."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest

import tnc
from tnc.errors import CheckpointError, MatchError, WeightError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here
from torch.nn.utils import parametrize, prune  # noqa: E402

from tnc.nn.layers.cores import Cores  # noqa: E402
from tnc.nn.layers.folders import refuse_folder  # noqa: E402

X = torch.linspace(-1, 1, 72).view(3, 24)


def dense():
    return nn.Sequential(nn.Linear(24, 18))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return tnc.compress(dense(), "svd", rank=3)


def answer(model, x=X):
    with torch.no_grad():
        return model(x)


# ------------------------------------------------- what is the module's own


def container(kind):
    class Owner(kind):
        def __init__(self):
            parts = [nn.Linear(24, 24)]
            super().__init__(
                *({"Sequential": parts, "ModuleList": [parts], "ModuleDict": [{"a": parts[0]}]}[kind.__name__])
            )
            self.scale = nn.Parameter(torch.randn(24, 24))

    return Owner()


def named(model):
    model.tnc_weight = nn.Linear(24, 18)


def stated(model):
    model._tnc = "mine"


def refused(model, name, other=None):
    """A catch-all passes over a weight and says why; a rule that names it is refused; a file for it, too."""
    before, modules = dict(model.named_parameters()), [type(m) for m in model.modules()]
    with pytest.raises(WeightError, match=rf"{name} cannot be factorized"):
        tnc.compress(model, tnc.Rule(name, "svd", 3))
    weights = {key: value for key, value in model.state_dict().items() if key == name}
    checkpoint = tnc.compress_weights(weights, tnc.Rule(name, "svd", 3))
    with pytest.raises(WeightError, match="cannot be factorized"):
        tnc.install(model, checkpoint, strict=False)
    assert dict(model.named_parameters()) == before and [type(m) for m in model.modules()] == modules
    if other is None:
        with pytest.raises(MatchError, match=rf"Passed over: {name}, as"):
            tnc.compress(model, "svd", rank=3)
    else:
        rows = {row.name: row for row in tnc.compress(model, "svd", rank=3).tnc_report.rows}
        assert rows[name].method == "dense" and rows[name].note and rows[other].method == "svd"


@pytest.mark.parametrize("kind", [nn.Sequential, nn.ModuleList, nn.ModuleDict])
def test_containers_with_parameters_of_their_own(kind):
    model = container(kind)
    parts = list(model._modules)
    refused(model, "scale", f"{parts[0]}.weight")
    assert list(model._modules) == parts and list(model.children()) == [model._modules[parts[0]]]


def test_a_weight_tied_to_one_of_a_container():
    inner = container(nn.Sequential)
    inner.scale = inner[0].weight
    model = tnc.compress(nn.ModuleList([inner, nn.Linear(24, 18)]), "svd", rank=3)
    notes = {row.name: row.note for row in model.tnc_report.rows}
    assert "tied to 0.scale" in notes["0.0.weight"] and inner.scale is inner[0].weight


@pytest.mark.parametrize(("own", "other"), [(named, "tnc_weight.weight"), (stated, None)])
def test_what_has_our_names_is_never_covered(own, other, tmp_path):
    model, fresh = nn.Linear(24, 18), nn.Linear(24, 18)
    own(model)
    refused(model, "weight", other)
    own(fresh)
    tnc.nn.save(model, tmp_path / "m.safetensors")
    assert torch.equal(answer(tnc.nn.load(fresh, tmp_path / "m.safetensors")), answer(model))


class RunsAll(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.mix = nn.Linear(24, 24), nn.Parameter(torch.randn(24, 24))

    def forward(self, x):
        for child in self.children():
            x = child(x)
        return x @ self.mix


def test_a_module_that_runs_all_its_submodules_says_so():
    model = tnc.compress(RunsAll(), tnc.Rule("?*", "svd", 3))
    with pytest.raises(WeightError, match=r"run as if they were a layer.*tnc\.Rule"):
        model(X)
    assert tnc.nn.uninstall(model)(X).shape == (3, 24)


# ------------------------------------------------------------------- frozen


STANDS_IN = {
    "functional_call": lambda m, state: torch.func.functional_call(m, state, (X,)),
    "setattr": lambda m, state: setattr(m[0].tnc_weight, "0", nn.Parameter(state["0.tnc_weight.0"])),
    "delattr": lambda m, state: delattr(m[0].tnc_weight, "0"),
    "assign": lambda m, state: m.load_state_dict(state, assign=True),
    "another of its class": lambda m, state: type(m[0].tnc_weight.get_parameter("0"))(state["0.tnc_weight.0"]),
}


@pytest.mark.parametrize("way", STANDS_IN.values(), ids=STANDS_IN)
def test_nothing_takes_the_place_of_a_frozen_core(model, way):
    state = {name: 2 * x.detach().clone() for name, x in model.state_dict().items()}
    core = tnc.nn.freeze(model)[0].tnc_weight.get_parameter("0")
    expected = answer(model) - model[0].bias.detach()
    with pytest.raises((WeightError, RuntimeError), match=r"tnc\.nn\.unfreeze"):
        way(model, state)
    assert torch.allclose(answer(model) - model[0].bias.detach(), expected, atol=1e-6)
    assert model[0].tnc_weight.get_parameter("0") is core
    tnc.nn.unfreeze(model).load_state_dict(state)
    assert torch.allclose(answer(model), answer(tnc.nn.uninstall(copy.deepcopy(model))), atol=1e-6)


def test_a_frozen_padding_row():
    model = tnc.compress(nn.Embedding(24, 18, padding_idx=2), "svd", rank=3)
    numbers = torch.tensor([1, 2])
    row = tnc.nn.freeze(model).tnc_weight.pinned
    for write in (
        lambda: row.fill_(7.0),
        lambda: row.data.mul_(2),
        lambda: setattr(model.tnc_weight, "pinned", 1 + row),
    ):
        with pytest.raises(WeightError, match=r"tnc\.nn\.unfreeze"):
            write()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.double().float()):
        assert not answer(twin, numbers)[1].any()
        with pytest.raises(WeightError, match=r"tnc\.nn\.unfreeze"):
            twin.tnc_weight.pinned.fill_(7.0)
    tnc.nn.unfreeze(model).tnc_weight.pinned.fill_(7.0)
    assert (answer(model, numbers)[1] == 7).all()


def test_an_optimizer_goes_on_after_unfreeze(model):
    optimizer = torch.optim.Adam(model[0].tnc_weight.parameters(), lr=0.1)
    model(X).sum().backward()
    optimizer.step()
    expected = answer(model)
    tnc.nn.freeze(model).double().float()
    optimizer.step()  # to what is no parameter of the model now
    assert torch.allclose(answer(model), expected, atol=1e-6)
    tnc.nn.unfreeze(model)
    assert torch.allclose(answer(model), expected, atol=1e-6)
    assert {id(p) for p in model[0].tnc_weight.parameters()} == {id(p) for p in optimizer.param_groups[0]["params"]}
    model(X).sum().backward()
    optimizer.step()
    assert not torch.allclose(answer(model), expected, atol=1e-3)
    mine = {id(p) for p in model.parameters()}
    twin = copy.deepcopy(tnc.nn.freeze(model))
    assert not mine & {id(p) for p in tnc.nn.unfreeze(twin).parameters()}


def test_parameters_that_nobody_holds_take_no_memory(model):
    gc.collect()
    tnc.nn.freeze(model)
    assert all(was() is None for was in model[0].tnc_weight.frozen.before)


def test_pruned_cores_are_not_frozen(model):
    prune.random_unstructured(model[0].tnc_weight, "1", 0.5)
    with pytest.raises(WeightError, match=r"core 1 is pruned.*prune\.remove"):
        tnc.nn.freeze(model)
    assert model[0].tnc_weight.frozen is None
    prune.remove(model[0].tnc_weight, "1")
    expected = answer(model)
    assert torch.allclose(answer(tnc.nn.freeze(model)), expected, atol=1e-6)


def test_replicas_of_a_frozen_model_use_their_own_cores(model):
    cores = tnc.nn.freeze(model)[0].tnc_weight
    replica = cores._replicate_for_data_parallel()
    for name, core in cores._parameters.items():
        setattr(replica, name, 2 * core.detach())
    assert all(torch.equal(a, 2 * b) for a, b in zip(replica.held(), cores.held(), strict=True))
    weight = replica.weight(replica.held(), True)
    assert torch.allclose(weight, 4 * cores.weight(cores.held(), True), atol=1e-5) and cores.frozen is not None


@pytest.mark.parametrize("strict", [False, True])
def test_frozen_models_are_exported(model, strict):
    program = torch.export.export(tnc.nn.freeze(model).eval(), (X,), strict=strict)
    assert torch.allclose(program.module()(X), answer(model), atol=1e-6)


# ------------------------------------------------------------ shallow copies


def test_a_shallow_copy_is_a_module_of_its_own(model):
    expected, layer = answer(model), model[0]
    twin = copy.copy(layer)
    assert torch.allclose(answer(tnc.nn.uninstall(twin)), expected, atol=1e-6)
    assert type(layer) is tnc.nn.Linear and torch.allclose(answer(layer), expected, atol=1e-6)
    plain = nn.Linear(24, 18)
    before = answer(plain)
    tnc.compress(copy.copy(plain), "svd", rank=3)
    assert type(plain) is nn.Linear and torch.equal(answer(plain), before)


# ---------------------------------------------------------- parametrizations


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("undone", ["compression", "parametrization"])
@pytest.mark.parametrize("first", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("kind", [nn.Linear, nn.GRU])
def test_another_parameter_is_parametrized(kind, first, undone):
    """Before or after compression; either can be undone first."""
    model = kind(24, 18)
    bias = next(name for name, p in model.named_parameters() if p.ndim == 1)

    def answered():
        found = answer(model)
        return found[0] if isinstance(found, tuple) else found

    if first:
        parametrize.register_parametrization(model, bias, Doubled())
    tnc.compress(model, tnc.Rule("weight*", "svd", 3))
    if not first:
        parametrize.register_parametrization(model, bias, Doubled())
    expected = answered()
    for what in sorted(["compression", "parametrization"], reverse=undone == "parametrization"):
        if what == "compression":
            tnc.nn.uninstall(model)
        else:
            parametrize.remove_parametrizations(model, bias)
        assert torch.allclose(answered(), expected, atol=1e-5)
    assert type(model) is kind


def test_turns_with_a_parametrization_between():
    model = tnc.compress(nn.GRU(24, 18), tnc.Rule("weight_ih*", "svd", 3))
    parametrize.register_parametrization(model, "bias_ih_l0", Doubled())
    tnc.compress(model, tnc.Rule("weight_hh*", "svd", 3))
    expected = answer(model)[0]
    model.weight_ih_l0 = nn.Parameter(model.weight_ih_l0.detach().clone())
    assert torch.allclose(answer(model)[0], expected, atol=1e-6)
    tnc.nn.uninstall(model)
    parametrize.remove_parametrizations(model, "bias_ih_l0")
    assert torch.allclose(answer(model)[0], expected, atol=1e-5) and type(model) is nn.GRU


# -------------------------------------------------------------------- files


def test_the_report_of_a_file_has_no_layer_that_is_dense_again(tmp_path):
    model = nn.Sequential(nn.Linear(24, 18), nn.Linear(18, 24))
    tnc.compress(tnc.compress(model, tnc.Rule("0.*", "svd", 3)), tnc.Rule("1.*", "mpo", 2))
    tnc.nn.uninstall(model[0])
    tnc.nn.save(model, tmp_path / "m.safetensors")
    assert [row.name for row in tnc.load(tmp_path / "m.safetensors").report.rows] == ["1.weight"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.to(torch.float8_e4m3fn), "float8_e4m3fn.*cast the model"),
        (lambda m: m.to("meta"), "meta device and has no values.*remove_hook_from_module"),
    ],
    ids=["float8", "meta"],
)
def test_cores_that_no_file_holds(model, tmp_path, change, said):
    with pytest.raises(CheckpointError, match=said):
        tnc.nn.save(change(model), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_offloaded_model_says_how_to_save_it(model, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    expected = answer(model)
    with pytest.raises(CheckpointError, match="remove_hook_from_module"):
        tnc.nn.save(model, tmp_path / "m.safetensors")
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    tnc.nn.save(model, tmp_path / "m.safetensors")
    assert torch.equal(answer(tnc.nn.load(dense(), tmp_path / "m.safetensors")), expected)


def llama():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=96, num_hidden_layers=2, **sizes)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("part", ["model", "model.layers.0", "lm_head"])
def test_a_part_of_a_model_of_transformers(part, tmp_path):
    """The model does not know what happened to its part, and yet writes no folder with random weights."""
    model, numbers = llama(), torch.tensor([[1, 5, 7]])
    tnc.compress(model.get_submodule(part), "svd", rank=3)
    with pytest.raises(WeightError, match=r"save_pretrained would write.*tnc\.nn\.save"):
        model.save_pretrained(tmp_path)
    expected = answer(model, numbers).logits
    tnc.nn.save(model, tmp_path / "m.safetensors")
    assert torch.allclose(answer(tnc.nn.load(llama(), tmp_path / "m.safetensors"), numbers).logits, expected)


def test_a_model_uninstalled_in_parts_is_saved(tmp_path):
    model, numbers = tnc.compress(llama(), "svd", rank=3), torch.tensor([[1, 5, 7]])
    for part in (*model.model.layers, model.model.embed_tokens, model.lm_head):
        tnc.nn.uninstall(part)
    model.save_pretrained(tmp_path)
    fresh = type(model).from_pretrained(tmp_path).eval()
    assert torch.allclose(answer(fresh, numbers).logits, answer(model, numbers).logits, atol=1e-6)


def test_the_hub_is_refused_too(model):
    code = compile("def _save_pretrained(state): return state()", "hub", "exec")
    hub, other = {"__name__": "huggingface_hub.hub_mixin"}, {"__name__": "mine"}
    exec(code, hub)
    exec(code, other)
    with pytest.raises(WeightError, match="random weights"):
        hub["_save_pretrained"](model.state_dict)
    assert other["_save_pretrained"](model.state_dict).keys() == model.state_dict().keys()
    assert refuse_folder() is None and isinstance(model[0].tnc_weight, Cores)
