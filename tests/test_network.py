"""Networks are data: patterns parse, print and compare; everything else is derived from them."""

from __future__ import annotations

import copy

import pytest

from tnc import Network
from tnc.errors import PatternError, RankError, TncError
from tnc.network import Feed

MPO = Network(
    "m0 n0 r1, r1 m1 n1 r2, r2 m2 n2 -> (m0 m1 m2) (n0 n1 n2)",
    {"m0": 4, "n0": 7, "r1": 3, "m1": 5, "n1": 2, "r2": 6, "m2": 3, "n2": 4},
)
CP = Network("m0 r0, n0 r0, k0 r0 -> m0 n0 k0", {"m0": 4, "n0": 5, "k0": 3, "r0": 7})
RING = Network("r2 m0 r0, r0 n0 r1, r1 k0 r2 -> m0 n0 k0", {"m0": 4, "n0": 5, "k0": 3, "r0": 2, "r1": 2, "r2": 2})
STP = Network("m0 t0 r0, r0 n0 -> (m0 t0) (n0)", {"m0": 3, "t0": 2, "r0": 2, "n0": 5})
ADTN = Network(
    "q0 q1 r0, r0 m0 n0 -> (q0 m0) (q1 n0)",
    {"q0": 2, "q1": 2, "r0": 3, "m0": 4, "n0": 5},
    Feed(Network("a b, b c -> a c", {"a": 4, "b": 2, "c": 3}), "tanh"),
)
ALL = [MPO, CP, RING, STP, ADTN]


def test_what_is_derived():
    assert MPO.operands == (("m0", "n0", "r1"), ("r1", "m1", "n1", "r2"), ("r2", "m2", "n2"))
    assert MPO.axes == (("m0", "m1", "m2"), ("n0", "n1", "n2"))
    assert MPO.outer == ("m0", "m1", "m2", "n0", "n1", "n2")
    assert MPO.bonds == ("r1", "r2") and MPO.ranks == (3, 6)
    assert MPO.core_shapes == ((4, 7, 3), (3, 5, 2, 6), (6, 3, 4))
    assert MPO.shape == (60, 56)
    assert MPO.n_params == 84 + 180 + 72


def test_a_bond_of_three_cores_is_one_hyperedge():
    assert CP.bonds == ("r0",) and CP.n_params == 7 * (4 + 5 + 3)


def test_a_pass_through_index_costs_its_size():
    # A (B x I_t): the index t0 stands in one core and on the right.
    assert STP.shape == (6, 5) and STP.bonds == ("r0",) and STP.core_shapes == ((3, 2, 2), (2, 5))


def test_cores_of_a_feed_come_first_and_its_tensor_is_no_core():
    assert ADTN.core_shapes == ((4, 2), (2, 3), (3, 4, 5))
    assert ADTN.n_params == 8 + 6 + 60 and ADTN.shape == (8, 10)


def test_flops():
    svd = Network("m0 r0, r0 n0 -> m0 n0", {"m0": 10, "r0": 3, "n0": 20})
    assert svd.flops == 2 * 3 * (10 + 20)  # from the input's end, whichever way the cores are written
    assert Network("r0 n0, m0 r0 -> m0 n0", {"m0": 10, "r0": 3, "n0": 20}).flops == svd.flops
    inner = 2 * 4 * 2 * 3  # rebuild the feed, then the whole, then apply it
    assert ADTN.flops >= inner + 2 * 2 * 2 * 3 * 4 * 5 + 2 * 8 * 10


@pytest.mark.parametrize("network", ALL, ids=lambda n: n.pattern)
def test_copies_are_equal(network):
    others = [copy.copy(network), copy.deepcopy(network), network.resize(), Network.from_json(network.to_json())]
    others += [Network.from_dict(network.to_dict()), eval(repr(network), {"Network": Network, "Feed": Feed})]
    for other in others:
        assert other == network and hash(other) == hash(network) and str(other) == str(network)


def test_equality_sees_everything():
    assert MPO.resize(r1=4) != MPO
    assert len({*ALL, *map(copy.copy, ALL)}) == len(ALL)
    plain = Network(ADTN.pattern, ADTN.sizes)
    relu = Network(ADTN.pattern, ADTN.sizes, Feed(ADTN.feed.network, "relu"))
    assert len({ADTN, plain, relu}) == 3


def test_spelling_is_normalised():
    loose = Network("  m0   r0 ,r0 n0->  m0 ( n0 )", {"n0": 3, "m0": 2, "r0": 1})
    tight = Network("m0 r0, r0 n0 -> m0 n0", {"m0": 2, "r0": 1, "n0": 3})
    assert loose == tight and hash(loose) == hash(tight) and loose.pattern == "m0 r0, r0 n0 -> m0 n0"


def test_an_axis_may_be_empty():
    network = Network("m0 -> m0 ()", {"m0": 3})
    assert network.shape == (3, 1) and Network(network.pattern, {"m0": 3}) == network


def test_networks_do_not_change():
    with pytest.raises(AttributeError):
        MPO.pattern = "m0 -> m0"
    with pytest.raises(TypeError):
        MPO.sizes["m0"] = 2
    sizes = {"m0": 2, "n0": 3}
    network = Network("m0 n0 -> m0 n0", sizes)
    sizes["m0"] = 9
    assert network.shape == (2, 3)


@pytest.mark.parametrize(
    ("pattern", "sizes", "words"),
    [
        ("m0 n0", {"m0": 2, "n0": 2}, "has no '->'"),
        ("m0 n0 -> (m0 n0", {"m0": 2, "n0": 2}, "parentheses"),
        ("m0 n0 -> m0 n0)", {"m0": 2, "n0": 2}, "parentheses"),
        ("m0 n0 -> (m0 (n0))", {"m0": 2, "n0": 2}, "parentheses"),
        ("(m0 n0) -> m0 n0", {"m0": 2, "n0": 2}, "index '(m0'"),
        ("m0 n0, -> m0 n0", {"m0": 2, "n0": 2}, "empty core"),
        ("m0 0n -> m0 0n", {"m0": 2, "0n": 2}, "index '0n'"),
        ("m0 n0 -> m0 n0", {"m0": 2}, "index 'n0' of pattern 'm0 n0 -> m0 n0' has no size"),
        ("m0 n0 -> m0 n0", {"m0": 2, "n0": 2, "q": 3}, "index 'q'"),
        ("m0 n0 -> m0 n0", {"m0": 2, "n0": 0}, "index 'n0'"),
        ("m0 n0 -> m0 n0", {"m0": 2, "n0": -1}, "size -1"),
        ("m0 n0 -> m0 n0", {"m0": 2, "n0": 2.5}, "size 2.5"),
        ("m0 n0 -> m0 n0", {"m0": 2, "n0": float("nan")}, "size nan"),
        ("m0 n0 -> m0 n0", {"m0": 2, "n0": "3"}, "size '3'"),
        ("m0 n0 -> m0 n0", {"m0": 2, "n0": None}, "size None"),
        ("m0 m0 n0 -> m0 n0", {"m0": 2, "n0": 2}, "index 'm0' of pattern 'm0 m0 n0 -> m0 n0' stands twice in one core"),
        ("m0 n0 -> m0 m0 n0", {"m0": 2, "n0": 2}, "stands twice on the right"),
        ("m0 r0, n0 -> m0 n0", {"m0": 2, "n0": 2, "r0": 2}, "index 'r0'"),
        ("m0 -> m0 n0", {"m0": 2, "n0": 2}, "index 'n0' of pattern 'm0 -> m0 n0' stands on the right but in no core"),
    ],
)
def test_bad_patterns_show_the_pattern_and_the_index(pattern, sizes, words):
    with pytest.raises(PatternError) as caught:
        Network(pattern, sizes)
    assert words in str(caught.value)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, TncError)


def test_a_feed_must_fill_the_first_operand():
    with pytest.raises(PatternError, match=r"rebuilds \(4, 3\).*sizes \[2, 5\]"):
        Network("a b, b c -> a c", {"a": 2, "b": 5, "c": 3}, ADTN.feed)


# ---------------------------------------------------------------------- trees


@pytest.mark.parametrize(("network", "tree"), [(MPO, True), (CP, False), (RING, False), (STP, True), (ADTN, False)])
def test_is_tree(network, tree):
    assert network.is_tree is tree


@pytest.mark.parametrize(
    "pattern",
    [
        "a r s, r s b -> a b",  # two bonds between the same cores
        "a r, r b, c s, s d -> a b c d",  # two pieces
        "a t r, r t b -> a t b",  # an index on the right in two cores
        "a, b -> a b",  # no bond at all
    ],
)
def test_is_no_tree(pattern):
    names = set(pattern.replace("->", " ").replace(",", " ").split())
    assert not Network(pattern, dict.fromkeys(names, 2)).is_tree


def test_one_core_is_a_tree():
    assert Network("m0 n0 -> m0 n0", {"m0": 2, "n0": 3}).is_tree


def test_sides_of_a_bond():
    assert MPO.side("r1") == ("m0", "n0")
    assert MPO.side("r2") == ("m0", "m1", "n0", "n1")


# ------------------------------------------------------------- changed copies


def test_resize():
    assert MPO.resize(r1=1, r2=2).core_shapes == ((4, 7, 1), (1, 5, 2, 2), (2, 3, 4))
    with pytest.raises(PatternError, match="'r9'"):
        MPO.resize(r9=1)


def test_clipped_bonds_are_what_can_be_used():
    assert MPO.resize(r1=1000, r2=1000).clipped().ranks == (28, 12)
    assert MPO.resize(r1=1000, r2=2).clipped().ranks == (20, 2)  # 5 * 2 * 2 on the right
    assert MPO.clipped() == MPO


def test_a_bound_travels_the_whole_chain():
    chain = Network(
        "a r0, r0 b r1, r1 c r2, r2 d -> a b c d",
        {"a": 2, "r0": 99, "b": 1, "r1": 99, "c": 1, "r2": 99, "d": 50},
    )
    assert chain.clipped().ranks == (2, 2, 2)


def test_hyperedges_are_not_clipped():
    assert CP.resize(r0=999).clipped().ranks == (999,)


def test_a_shared_index_on_the_right_does_not_raise_a_bound():
    # For every t its own matrix: rank at most min(3, 4), however large t is.
    batched = Network("t a r, r t b -> t a b", {"t": 10, "a": 3, "b": 4, "r": 30})
    assert batched.clipped().ranks == (3,)


def test_the_bond_of_a_feed_is_what_the_feed_rebuilds():
    feed = Feed(Network("a b, b c -> a c", {"a": 4, "b": 2, "c": 30}))
    network = Network("q0 r0, r0 m0 -> q0 m0", {"q0": 4, "r0": 30, "m0": 2}, feed)
    assert network.clipped() == network  # r0 = 2 would no longer fit the feed's 4 x 30 entries


def test_a_bond_of_a_feed_and_two_cores_is_not_clipped():
    feed = Feed(Network("a b, b c -> a c", {"a": 3, "b": 2, "c": 5}))
    network = Network("m r, n r, k r -> m n k", {"m": 3, "n": 2, "k": 2, "r": 5}, feed)
    assert network.clipped() == network


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Network(3, {}), "not int and dict"),
        (lambda: Network(None, {}), "not NoneType and dict"),
        (lambda: Network(["m -> m"], {"m": 2}), "not list and dict"),
        (lambda: Network("m -> m", [2]), "not str and list"),
        (lambda: Network("m -> m", {"m": True}), "index 'm' of pattern 'm -> m' has size True"),
        (lambda: Network("m -> m", {"m": 2**63}), "more than an array can have"),
        (lambda: Network("m -> m", {"m": 2}, "relu"), "a Feed or None is needed"),
        (lambda: Feed("m -> m"), "not str and str"),
        (lambda: Feed(MPO, ["relu"]), "not Network and list"),
        (lambda: Network.from_dict([]), "a mapping with pattern, sizes is needed"),
        (lambda: Network.from_dict({"pattern": "m -> m"}), "a network has no 'sizes'"),
        (lambda: Network.from_dict({"pattern": "m -> m", "sizes": {"m": 2}, "fed": None}), "'fed' that is not known"),
        (lambda: Network.from_dict({"pattern": "m -> m", "sizes": {"m": 2}, "feed": {}}), "a feed has no 'network'"),
        (lambda: Network.from_json("{"), "is not a network as JSON"),
    ],
)
def test_values_of_the_wrong_type(make, words):
    with pytest.raises(PatternError, match=r".") as caught:
        make()
    assert words in str(caught.value)


def test_of_rank():
    sizes = {"m0": 4, "n0": 7, "m1": 5, "n1": 2}
    pattern = "m0 n0 r1, r1 m1 n1 -> (m0 m1) (n0 n1)"
    assert Network.of_rank(pattern, sizes, 3).ranks == (3,)
    assert Network.of_rank(pattern, sizes, [3]) == Network.of_rank(pattern, sizes, 3)
    two = "a r0, r0 b r1, r1 c -> a b c"
    assert Network.of_rank(two, {"a": 2, "b": 2, "c": 2}, (2, 5)).ranks == (2, 5)
    assert Network.of_rank(two, {"a": 2, "b": 2, "c": 2, "r1": 7}, 3).ranks == (3, 7)  # given sizes stay


@pytest.mark.parametrize("rank", [0, -1, 1.5, "8", None, (2, 0), (2,), (2, 2, 2), ()])
def test_of_rank_refuses(rank):
    with pytest.raises(RankError, match=r"rank .*\['r0', 'r1'\]"):
        Network.of_rank("a r0, r0 b r1, r1 c -> a b c", {"a": 2, "b": 2, "c": 2}, rank)


def test_only_the_standard_library_is_needed(said_without):
    assert said_without(["numpy"], "Network('a b -> a b', {'a': 2, 'b': 3}).n_params") == "6"
