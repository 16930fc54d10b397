"""Text that people write: patterns of networks and rules. Refused with an error of ours, or read back as the same."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

import numpy as np

from tests.fuzz.originals import CP, FED, MPO, RING, SVD, WALL
from tests.fuzz.trees import HOSTILE, spoilt
from tnc import Network, Rule
from tnc.contract import dense
from tnc.errors import PatternError, TncError
from tnc.network import Feed

Random = np.random.Generator

PIECES = [
    *("m", "n", "r", "m0", "n0", "r1", "k0", "t", "*", ",", ",", "->", "->", "(", ")", " ", " ", " ", "  ", "\t", "\n"),
    *("é", "m_1", "0m", "-", ">", "()", "( )", "m m", "a" * 200, "\0", "\u202e", "->->", "((", "))", ",,", "ß", "m.n"),
]
SIZES = [*([1, 2, 3, 4] * 6), 0, -1, True, 2.0, "2", None, 2**40, 2**63, 2**64, float("nan"), [2], np.int64(3)]


def a_pattern(rng: Random) -> str:
    """Of pieces, or one that is right with a few words changed."""
    if rng.random() < 0.4:
        return "".join(PIECES[k] for k in rng.integers(len(PIECES), size=rng.integers(1, 16)))
    found = [SVD, MPO, CP, RING, WALL, FED][rng.integers(6)].pattern
    return spoilt(found, rng) if rng.random() < 0.7 else found


def a_network(text: str, rng: Random) -> Network:
    """A network of that pattern; sizes, and now and then a feed, are right or wrong."""
    names = list(dict.fromkeys(text.replace("->", " ").replace(",", " ").replace("(", " ").replace(")", " ").split()))
    sizes: Any = {name: SIZES[rng.integers(24 if rng.random() < 0.8 else len(SIZES))] for name in names}
    if rng.random() < 0.1 and names:
        sizes.pop(names[0])
    if rng.random() < 0.05:
        sizes = HOSTILE[rng.integers(len(HOSTILE))]
    feed = Feed(WALL, str(rng.choice(["relu", "tanh", "swish"]))) if rng.random() < 0.2 else None
    return Network(text, sizes, feed)


def pattern(rng: Random) -> str:
    text = a_pattern(rng)
    try:
        network = a_network(text, rng)
    except PatternError:
        return "refused"
    assert Network(network.pattern, network.sizes, network.feed) == network, "printed, it is another"
    again = Network.from_json(network.to_json())
    assert again == network and hash(again) == hash(network) and repr(again) == repr(network)
    derived = [network.n_params, network.shape, network.bonds, network.ranks, network.flops, network.core_shapes]
    assert network.clipped().shape == network.shape and derived and network.is_tree in (True, False)
    if prod(network.sizes.values()) <= 1 << 12 and (network.feed is None or network.feed.activation != "swish"):
        cores = [rng.standard_normal(shape) for shape in network.core_shapes]
        found = dense(network, cores)
        assert found.shape == network.shape
        if network.feed is None:
            np.testing.assert_allclose(found, _einsum(network, cores), rtol=1e-9, atol=1e-9)
    return "read"


def _einsum(network: Network, cores: list[np.ndarray]) -> np.ndarray:
    letter = {name: k for k, name in enumerate(network.sizes)}
    pairs = zip(cores, network.operands, strict=True)
    operands = [x for core, names in pairs for x in (core, [letter[i] for i in names])]
    return np.einsum(*operands, [letter[i] for i in network.outer]).reshape(network.shape)


PLUGINS = ["mpo", "tt", "tucker", "cp", "svd", "ring", "btt", "adtn", "stt", "sttu", "str", "mop", "", "None", "MPO"]
FIELDS = ["order", "rows", "columns", "t", "depth", "activation", "dimension", "steps", "ordre", "**x", "order order"]
VALUES = [
    *("2", "4", "0", "-1", "1.5", "1e400", "nan", "None", "True", "'relu'", "'swish'", "(4, 4)", "[4, 4]", "(4,", "{}"),
    *("(2, 8)", "()", "x", "f()", "9" * 5000, "(" * 300 + ")" * 300, "-" * 500 + "1", "1_0", "'a", "lambda: 1", "\0"),
    *(
        "{1: 2}",
        "{[1]}",
        "1j",
        "b'x'",
        "...",
        "2**3",
        "'%s'",
        "[[2, 2], [2, 2]]",
        "(0, 0)",
        "('a', 'b')",
        "10**9",
        "1 2",
    ),
]
RANKS = [
    *(
        "8",
        "0.1",
        "4,4",
        "ratio:0.1",
        "tolerance:0.02",
        "budget:0.1",
        "rank:3",
        "0",
        "-1",
        "1.0",
        "nan",
        "inf",
        "1e-400",
    ),
    *(
        "ratio:",
        ":",
        "ratio:x",
        "ratio:2",
        "8x",
        "4,",
        ",",
        "٣",
        "²",
        "1_0",
        "0x10",
        "9" * 5000,
        "1e400",
        "",
        " 8 ",
        "(4,4)",
    ),
    *("tolerance:0", "tolerance:nan", "budget:-0.1", "RATIO:0.1", "ratio:ratio:0.1", "+8", "--8", "\0", "8\n", "true"),
    *("budget:0.2,of=flops,batch=8", "budget:0.2,whole", "budget:0.2,of=", "budget:,whole", "budget:0.2,batch=1e3"),
]
GLOBS = ["*", "*.fc*", "[", "[!a]", "a=b", "", "?", "*" * 500, "\0", "é", "[z-a]", "w@8"]
RIGHT = [
    *(
        "*.fc*=mpo(order=4)@ratio:0.1",
        "*=svd@8",
        "w=tucker@4,4",
        "*=stt(t=2)@4",
        "x=adtn(depth=2, activation='tanh')@2",
    ),
    *("w=mpo(rows=(4, 4), columns=(2, 8))@tolerance:0.02", "*conv*=cp@budget:0.2", "a=ring(order=3)@3,3,3,3,3,3"),
]


def a_rule(rng: Random) -> str:
    if rng.random() < 0.4:
        found = RIGHT[rng.integers(len(RIGHT))]
        return spoilt(found, rng) if rng.random() < 0.8 else found

    def one(choices: list[str]) -> str:
        return choices[rng.integers(len(choices))]

    fields = ", ".join(f"{one(FIELDS)}={one(VALUES)}" for _ in range(rng.integers(0, 3)))
    call = f"({fields})" if fields else one(["", "()", "(", ")", "(,)", "(4)", "()()"])
    return (
        f"{one(GLOBS)}{one(['=', '=', '=', '', '=='])}{one(PLUGINS)}{call}{one(['@', '@', '@', '', '@@'])}{one(RANKS)}"
    )


def rule(rng: Random) -> str:
    text = a_rule(rng)
    try:
        found = Rule.parse(text)
    except TncError:
        return "refused"
    if found.decomposition is None:
        return "read"
    again = Rule.parse(f"{found.match}={found.decomposition}@{found.rank}")
    assert again == found, f"{text!r}, printed, is another: {again}"
    return "read"


GRAMMARS = {"patterns": pattern, "rules": rule}


def run(kind: str, seed: int, times: int) -> tuple[Counter[str], list[str]]:
    """What became of so many texts of a grammar, and how to make again what is not well."""
    found, bad = Counter[str](), []
    for k in range(times):
        try:
            found[GRAMMARS[kind](np.random.default_rng([seed, k]))] += 1
        except Exception as error:
            found["failed"] += 1
            bad.append(f"{kind}, seed {seed}, number {k}: {type(error).__name__}: {str(error)[:200]}")
    return found, bad
