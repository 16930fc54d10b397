"""Plans for one input alone: what is left out must not tell, forwards or backwards."""

from __future__ import annotations

import pytest

from tnc.contract.executor import Executor, run
from tnc.contract.plans import plan

torch = pytest.importorskip("torch")

from tnc.contract.specialize import sized  # noqa: E402 - after the check that torch is here
from tnc.nn.runtime.namespace import xp  # noqa: E402

PATTERNS = {
    "train": ([("*", "n", "o"), ("m", "n", "r"), ("r", "p", "o")], ("*", "m", "p")),
    "long train": (
        [("*", "n", "o", "a"), ("m", "n", "r"), ("r", "p", "o", "s"), ("s", "b", "a")],
        ("*", "m", "p", "b"),
    ),
    "ring": ([("*", "n", "o"), ("s", "n", "r"), ("r", "m", "t"), ("t", "o", "s")], ("*", "m")),
    "map": ([("*", "n", "o", "."), ("m", "n", "r"), ("r", "p", "o")], ("*", "m", "p", ".")),
    "hyperedge": ([("*", "n", "o"), ("m", "r"), ("n", "r"), ("o", "r")], ("*", "m")),
    "batched": ([("*", "b", "r"), ("b", "r", "c")], ("*", "b", "c")),
    "outer": ([("*", "a"), ("b",)], ("b", "*", "a")),
    "one operand": ([("a", "*", "b")], ("b", "a", "*")),
}
SIZES = {"a": 3, "b": 4, "c": 5, "r": 2, "n": 3, "o": 4, "m": 5, "p": 6, "s": 2, "t": 3}
ONES = [(), ("r",), ("n", "m"), ("a", "b", "o"), tuple(SIZES)]


def by_einsum(operands, output, arrays):
    """The same contraction by torch's own function."""
    names = dict.fromkeys(name for core in operands for name in core)
    letter = {name: chr(97 + k) for k, name in enumerate(names)}
    terms = ["".join(letter[i] for i in core) for core in (*operands, output)]
    return torch.einsum(f"{','.join(terms[:-1])}->{terms[-1]}", *arrays)


@pytest.mark.pairwise("what is left out of a plan is decided index by index")
@pytest.mark.parametrize("ones", ONES, ids=str)
@pytest.mark.parametrize(("inputs", "positions"), [(1, 1), (1, 6), (7, 1), (0, 1)], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_plan_for_sizes_of_one(pattern, inputs, positions, ones):
    """Planned for other sizes, run where indices have size 1: as einsum, forwards and backwards."""
    operands, output = PATTERNS[pattern]
    sizes = {**SIZES, "*": 64, ".": 9, **dict.fromkeys(ones, 1)}
    made = plan(tuple(operands), output, tuple((i, n) for i, n in sizes.items() if any(i in o for o in operands)))
    sizes |= {"*": inputs, ".": positions}
    arrays = [torch.randn([sizes[i] for i in o], dtype=torch.float64, requires_grad=True) for o in operands]
    expected = by_einsum(operands, output, arrays)
    g = torch.randn(expected.shape, dtype=torch.float64)
    slopes = torch.autograd.grad(expected, arrays, g)
    short = sized(made, arrays)
    assert (short is made) == (1 not in [sizes[i] for i, *_ in made.where])
    assert torch.allclose(run(short, arrays), expected)
    with torch.no_grad():
        for allowed in (0, 1e9):
            executor = Executor(xp)
            result, kept = executor.forward(short, arrays, allowed)
            found = executor.backward(short, arrays, kept, g, [True] * len(arrays))
            assert result.shape == expected.shape
            assert torch.allclose(result, expected)
            for ours, theirs, x in zip(found, slopes, arrays, strict=True):
                assert ours.shape == x.shape
                assert torch.allclose(ours, theirs)


def test_plans_for_sizes_of_one_are_few_and_made_once():
    made = plan((("*", "n", "."), ("m", "n")), ("*", "m", "."), (("*", 4), ("n", 3), (".", 9), ("m", 5)))
    core = torch.randn(5, 3)
    assert sized(made, [torch.randn(2, 3, 4), core]) is made
    first = sized(made, [torch.randn(1, 3, 4), core])
    assert sized(made, [torch.randn(1, 3, 4), core]) is first
    for positions in range(500):
        sized(made, [torch.randn(1, 3, positions), core])
    assert len(made.known) < 100
