"""The published parameter counts, exactly; and that what is built has what was counted."""

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from benchmarks.papers import adtn, features, mpo, networks, stp  # noqa: E402
from benchmarks.papers.changes import Format, chained, find, narrowed, svd, weights_of  # noqa: E402
from benchmarks.papers.study import counted  # noqa: E402


def rows(paper, net, data=None):
    found = [study for study in paper.studies() if study.net == net and data in (None, study.data)]
    return {row["method"]: row for row in counted(found[0])}


PUBLISHED = [
    ("fc2", "mpo D=4", 1760),
    ("fc2", "mpo D=8", 6720),
    ("fc2", "mpo D=16", 26240),
    ("fc2", "mpo D=26", 68640),
    ("lenet5", "mpo D=4, 4, 2", 2860),
    ("vgg16", "mpo D=4", 10944),
    ("vgg19", "mpo D=4", 10944),
    ("wrn-20-4", "mpo D=4, 4, 3", 3412),
    ("densenet", "mpo D=4", 576),
]
REPLACED = {"fc2": 203264, "lenet5": 58920, "vgg16": 23633920, "vgg19": 23633920, "wrn-20-4": 1182208, "densenet": 4480}


@pytest.mark.parametrize(("net", "method", "size"), PUBLISHED)
def test_mpo_has_the_published_parameters(net, method, size):
    row = rows(mpo, net)[method]
    assert row["replaced"] == row["published"]["parameters"] == size
    assert row["dense_replaced"] == REPLACED[net]
    assert row["dense_whole"] - row["whole"] == row["dense_replaced"] - row["replaced"]


def test_adtn_has_424_where_the_weights_are_large():
    head = rows(adtn, "vgg16-head")
    assert head["dense"]["replaced"] == 2**21 + 2**24
    assert head["adtn M=1"]["replaced"] == head["adtn M=1, two stages"]["replaced"] == 424
    assert head["svd at 424"]["replaced"] == 512 + 4096 + 4096 + 4096  # no smaller one exists
    assert head["no hidden layer"]["whole"] == 5130
    method = next(m for m in adtn.on_features().methods if m.name == "no hidden layer")
    with torch.device("meta"):  # made anew, not the trained dense head again
        assert isinstance(method.made(adtn.head()), nn.Linear)
    assert rows(adtn, "vgg16-adtn", "cifar100")["adtn M=1"]["replaced"] == 424
    assert rows(adtn, "alexnet")["adtn M=1"]["replaced"] == 4 * 11 + 16 * 10 + 224


def test_the_tail_is_the_end_of_the_trained_network(monkeypatch):
    """Its block of convolutions makes, from the maps before it, the features of the whole network."""
    assert rows(adtn, "vgg16-tail")["adtn M=1"]["replaced"] == 424
    torch.manual_seed(0)
    trained = networks.build("vgg16-bn").eval()
    monkeypatch.setattr("benchmarks.papers.trained.vgg16_bn", lambda: copy.deepcopy(trained))
    before, _ = features._divided(copy.deepcopy(trained))
    tail = features.tail(nn.Identity()).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(tail(before(images).flatten(1)), features.trunk(trained)(images), atol=1e-6)


def test_semi_tensor_factors_are_those_of_the_chosen_modes():
    resnet, wide = rows(stp, "resnet32"), rows(stp, "wrn-28-10")
    factor = {name: row["dense_whole"] / row["whole"] for name, row in (resnet | wide).items()}
    assert resnet["dense"]["whole"] == 464154 and wide["dense"]["whole"] == 36479194
    assert factor["stt"] == pytest.approx(9, rel=0.02)  # published
    assert factor["ring"] == pytest.approx(99, rel=0.02)
    assert factor["str"] == pytest.approx(179, rel=0.01)
    assert factor["tt"] == pytest.approx(5.0, abs=0.01)  # published: 3, which is nearest without clipping
    small = rows(stp, "wrn-16-4")
    assert small["dense"]["whole"] == 2_748_890
    assert small["ring, rank 10"]["whole"] <= small["str"]["whole"] < small["ring"]["whole"]
    assert "| ResNet-32: 64 = 4·4·4 (ours) | 5× | 8.85× | 3.39× | 5.97× |" in stp.alternatives()


@pytest.mark.parametrize(("paper", "at"), [(mpo, 0), (mpo, 1), (adtn, 1), (adtn, 2)])
def test_what_is_built_has_what_was_counted(paper, at):
    study = paper.studies()[at]
    torch.manual_seed(0)
    dense = study.methods[0].made(None)
    before = {name: p.clone() for name, p in dense.named_parameters()}
    for method, row in zip(study.methods, counted(study), strict=True):
        model = method.made(dense)
        names = method.layers or method.narrow or study.dense[0]
        assert sum(p.numel() for p in model.parameters()) == row["whole"], method.name
        assert weights_of(model, names) == row["replaced"], method.name
        assert model(torch.randn(3, 1, 28, 28)).shape == (3, 10)
    assert all(torch.equal(before[name], p) for name, p in dense.named_parameters())


def test_two_stages_start_towards_the_trained_weights_and_fresh_cores_do_not():
    study = adtn.studies()[1]
    methods = {method.name: method for method in study.methods}
    torch.manual_seed(0)
    dense = study.methods[0].made(None)
    dense.fc1.bias.data.fill_(7.0)
    fitted, fresh = (methods[name].made(dense) for name in ("adtn M=1, two stages", "adtn M=1"))
    assert (fitted.fc1.bias == 7).all() and (fresh.fc1.bias != 7).all()
    weight = dense.fc1.weight.detach().double()  # in float32 torch's norm of a cropped view errs by 1e-4
    made = [model.fc1.weight.detach().double() for model in (fitted, fresh)]
    cosines = [float((one * weight).sum() / one.norm() / weight.norm()) for one in made]
    chance = weight.numel() ** -0.5  # deviation of the cosine of two weights drawn at random
    assert cosines[0] > 6 * chance > 2 * abs(cosines[1])
    assert float(made[0].norm()) == pytest.approx(float(weight.norm()), rel=1e-4)


# ------------------------------------------------------------------------------------------------- controls


def test_an_svd_takes_the_most_that_fits_all_layers_together():
    model = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
    made = svd(model, {"0.weight": 400, "2.weight": 80})
    assert [one.rank for one in made.values()] == [2, 3]  # 300 + 180 of 480
    assert [one.rank for one in svd(model, {"0.weight": 1, "2.weight": 1}).values()] == [1, 1]
    assert svd(model, {"2.weight": 10**6})["2.weight"] == Format("svd", 8, True)  # rank 9 would be larger than dense


def test_layers_that_feed_each_other_get_fewer_units_and_others_a_bottleneck():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(32, 40),
        nn.ReLU(),
        nn.Linear(40, 20),
        nn.Linear(20, 5),
    )
    assert chained(model, ["2.weight", "4.weight"]) and not chained(model, ["2.weight", "5.weight"])
    small = narrowed(copy.deepcopy(model), {"0.weight": 75, "2.weight": 200, "4.weight": 100, "5.weight": 30})
    assert [layer.weight.shape for layer in small[0]] == [(2, 3, 3, 3), (8, 2, 1, 1)]
    widths = [small[2].in_features, small[2].out_features, small[4].out_features, small[5].out_features]
    assert widths == [32, 8, 4, 5]  # 32·8 + 8·4 + 4·5 = 308 of 330; nine units would have 32·9 + 9·4 + 4·5 = 344
    assert small(torch.randn(2, 3, 4, 4)).shape == (2, 5)
    assert weights_of(small, ["0.weight", "2.weight", "4.weight", "5.weight"]) == 2 * 27 + 16 + 308


def test_the_last_of_several_layers_of_one_shape_are_found():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    assert find(model, (4, 4), 2) == ["1.weight", "2.weight"]
    with pytest.raises(LookupError, match=r"4 weights of shape \(4, 4\) are needed, the model has 3"):
        find(model, (4, 4), 4)
