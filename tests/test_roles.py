"""Roles of axes: what they say, what a plugin sees, and networks in the order a module stores its weight."""

import json
import pickle

import numpy as np
import pytest

import tnc
from tnc.decomposition import InRoles
from tnc.errors import CheckpointError, WeightError
from tnc.manifest import Manifest, Weight, parse
from tnc.modes import modes
from tnc.roles import AxisRoles, Roles, WeightShape, guessed, roles

SEEN = {
    "rows columns": ((6, 4), (6, 4), Roles((), 0, 1, ())),
    "columns rows": ((4, 6), (6, 4), Roles((), 0, 1, ())),
    "rows columns kernel kernel": ((6, 4, 3, 2), (6, 4, 3, 2), Roles((), 0, 1, (2, 3))),
    "columns rows kernel": ((4, 6, 3), (6, 4, 3), Roles((), 0, 1, (2,))),
    "stack columns rows": ((5, 4, 6), (5, 6, 4), Roles((0,), 1, 2, ())),
    "(stack=3 rows) columns": ((18, 4), (3, 6, 4), Roles((0,), 1, 2, ())),
    "(group=3 rows) columns kernel": ((18, 4, 7), (6, 4, 7), Roles((), 0, 1, (2,))),
    "(group=2 columns) rows kernel": ((8, 6, 7), (6, 4, 7), Roles((), 0, 1, (2,))),
}


@pytest.mark.parametrize("text", SEEN)
def test_what_a_plugin_sees(text):
    shape, seen, expected = SEEN[text]
    found = AxisRoles(text).seen(shape)
    assert found == seen and isinstance(found, tuple) and found.roles == expected == roles(found)
    assert modes(found).sizes == modes(WeightShape(seen, expected)).sizes
    copied = pickle.loads(pickle.dumps(found))
    assert copied == found and copied.roles == expected
    assert str(AxisRoles(f"  {text.replace(' ', '  ')} ")) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "rows", "rows rows columns", "rows columns columns", "rows, columns", "row columns", "rows columns depth",
        "(stack=0 rows) columns", "(stack rows) columns", "(rows=2 stack) columns", "group group rows columns",
        "(stack=3 kernel) rows columns", "rows columns " * 200,
    ],
)  # fmt: skip
def test_what_is_not_understood(text):
    with pytest.raises(WeightError, match="roles"):
        AxisRoles(text)


@pytest.mark.parametrize(("text", "shape"), [("rows columns", (3, 4, 5)), ("(stack=3 rows) columns", (10, 4))])
def test_roles_of_another_weight(text, shape):
    with pytest.raises(WeightError, match="roles"):
        AxisRoles(text).seen(shape)
    with pytest.raises(WeightError, match="roles"):
        tnc.compress_weights({"w": np.ones(shape)}, tnc.Rule("w", "svd", 1, roles=text))


def test_a_long_kernel_is_no_stack():
    """A last axis over 32 made a kernel of a convolution a stack of matrices."""
    assert guessed((64, 64, 33)).text == "stack rows columns" and guessed((64, 64, 32)).text == "rows columns kernel"
    stated = AxisRoles("rows columns kernel").seen((64, 64, 33))
    assert tnc.decompositions["svd"]().network(stated, 2).pattern == "m0 r0, r0 n0 k0 -> m0 n0 k0"
    assert tnc.decompositions["svd"]().network((64, 64, 33), 2).pattern == "m0 m1 r0, r0 n0 -> m0 m1 n0"


EVERY = sorted(tnc.decompositions)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("text", SEEN)
def test_every_plugin_in_every_order(method, text, rng):
    """The error is that of the plugin's own fit of the weight in the plugin's order, of each group by itself."""
    shape = {"rows": 16, "columns": 8, "kernel": 3, "stack": 4, "group": 2}
    stated = AxisRoles(text)
    whole = tuple(np.prod([axis.size if k < len(axis.names) - 1 else shape[name]
                           for k, name in enumerate(axis.names)]) for axis in stated.axes)  # fmt: skip
    whole = tuple(int(n) for n in whole)
    plugin = tnc.decompositions[method]()
    placed, weight = InRoles(plugin, stated), rng.standard_normal(whole)
    network = placed.network(whole, 2).clipped()
    cores = placed.fit(weight, network)
    found = tnc.Factorization(network, cores, whole, placed.known(network, whole))
    assert found.roles is not None and str(placed) == str(plugin)
    used = found.roles
    ordered = weight.reshape(used.split(whole)[1]).transpose(used.order)
    seen, missed = used.seen(whole), 0.0
    own = plugin.network(seen, 2).clipped()
    for part in ordered if used.grouped else [ordered]:
        alone = tnc.Factorization(own, plugin.fit(part, own), tuple(part.shape))
        missed += float(np.linalg.norm(part - alone.dense())) ** 2
    assert found.error(weight) == pytest.approx(missed**0.5 / np.linalg.norm(weight), rel=1e-9)
    assert used.unstored(network, whole) == own
    if method != "adtn":  # whose sites may have to be padded inside an axis of two roles
        assert used == stated


def test_groups_have_cores_of_their_own(rng):
    """Blocks of different low rank spaces: as one weight they would need the sum of their ranks."""
    blocks = [rng.standard_normal((8, 1)) @ rng.standard_normal((1, 12)) for _ in range(4)]
    weight = np.concatenate(blocks).reshape(32, 4, 3)
    one = tnc.compress_weights({"w": weight}, tnc.Rule("w", "svd", 1, roles="(group=4 rows) columns kernel"))
    assert one.report.rows[0].error < 1e-12 and one["w"].network.pattern == "g0 m0 r0, g0 r0 n0 k0 -> (g0 m0) n0 k0"
    assert tnc.compress_weights({"w": weight}, tnc.Rule("w", "svd", 1)).report.rows[0].error > 0.5


def test_a_budget_over_weights_of_different_roles(rng):
    weights = {
        "linear": rng.standard_normal((16, 24)),
        "groups": rng.standard_normal((16, 8, 3)),
        "experts": rng.standard_normal((4, 16, 8)),
    }
    stated = {"groups": AxisRoles("(group=2 rows) columns kernel"), "experts": AxisRoles("stack columns rows")}
    for method in ("svd", "cp", "tucker"):
        found = tnc.compress_weights(weights, method, rank="budget:0.5", roles=stated)
        total = sum(x.size for x in weights.values())
        assert sum(row.after for row in found.report.rows) <= 0.5 * total
        expected = {
            "linear": "rows columns", "groups": "(group=2 rows) columns kernel", "experts": "stack columns rows",
        }  # fmt: skip
        kept = {name: entry.roles.text for name, entry in found.factorized.items()}
        assert len(kept) >= 2 and kept.items() <= expected.items()  # a budget may leave one of them dense
        each = tnc.compress_weights(weights, method, rank=0.5, roles=stated).factorized
        assert {name: entry.roles.text for name, entry in each.items()} == expected


def test_guesses_are_said(rng):
    weights = {
        "a": rng.standard_normal((8, 6)),
        "b": rng.standard_normal((4, 8, 40)),
        "c": rng.standard_normal((8, 6, 3)),
    }
    notes = {row.name: row.note for row in tnc.compress_weights(weights, "svd", rank=1).report.rows}
    assert notes["a"] == ""
    assert "axes assumed: stack rows columns" in notes["b"] and "axes assumed: rows columns kernel" in notes["c"]
    stated = tnc.Rule("*", "svd", 1, roles="stack rows columns")
    found = tnc.compress_weights({"b": weights["b"]}, stated)
    assert found.report.rows[0].note == ""


def test_roles_stand_in_the_checkpoint(tmp_path, rng):
    weights = {"w": rng.standard_normal((4, 6, 8)), "v": rng.standard_normal((6, 8))}
    made = tnc.compress_weights(weights, "mpo(order=2)", rank=2, roles={"w": AxisRoles("stack columns rows")})
    made.save(tmp_path / "x.safetensors")
    back = tnc.load(tmp_path / "x.safetensors")
    assert back["w"].roles.text == "stack columns rows" and back["v"].roles.text == "rows columns"
    assert np.array_equal(back["w"].dense(), made["w"].dense())
    assert made["w"].map(lambda core: 2 * core).roles is made["w"].roles


@pytest.mark.parametrize(
    "claim",
    [5, None, "", "rows", "rows columns", "columns rows rows", "(group=2 stack) rows columns",
     "(group=3 rows) columns kernel", "(stack=7 rows) columns kernel", "group rows columns"],
    ids=str,
)  # fmt: skip
def test_roles_of_a_file_are_checked(tmp_path, rng, claim):
    """What a header says of the axes must be of text, known, and those of the network."""
    made = tnc.compress_weights(
        {"w": rng.standard_normal((12, 6, 3))}, tnc.Rule("w", "svd", 1, roles="rows columns kernel")
    )
    network, shape = made["w"].network, made["w"].shape
    words = Manifest(["w"], {"w": Weight(network, shape, "svd", made["w"].roles)}, {}, made.report).to_json()
    assert parse(words).weights["w"].roles.text == "rows columns kernel"
    with pytest.raises(CheckpointError, match="roles"):
        parse(words.replace(json.dumps("rows columns kernel"), json.dumps(claim)))
