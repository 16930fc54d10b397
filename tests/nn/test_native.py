"""The array namespace of layers, and plans for one input alone: what is left out must not tell."""

import pytest

import tnc
from tnc.adjoint import pull, push
from tnc.plans import plan, run

torch = pytest.importorskip("torch")

from tnc.nn.alone import sized  # noqa: E402 - after the check that torch is here
from tnc.nn.native import xp  # noqa: E402
from tnc.nn.recompute import contracted  # noqa: E402

SHAPES = [
    ((3, 4), (4, 5)),
    ((0, 4), (4, 5)),
    ((3, 0), (0, 5)),
    ((3, 4), (4, 0)),
    ((2, 3, 4), (2, 4, 5)),
    ((0, 3, 4), (0, 4, 5)),
    ((2, 3, 0), (2, 0, 5)),
    ((2, 3, 4), (4, 5)),
    ((3, 4), (2, 4, 5)),
    ((1, 3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (2, 4, 5)),
    ((4,), (4, 5)),
]
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)


def laid(shape, dtype, layout):
    """A random tensor that lies in memory in one of several ways."""
    x = torch.randn(shape).to(dtype)
    if layout == "turned":
        return x.mT.contiguous().mT if x.dim() > 1 else x
    if layout == "strided":
        return torch.stack((x, x), -1)[..., 0]
    return x


@each_dtype
@pytest.mark.parametrize("layout", ["plain", "turned", "strided"])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_products_are_torchs(shapes, dtype, layout):
    a, b = (laid(shape, dtype, layout) for shape in shapes)
    found = xp.matmul(a, b)
    assert found.dtype == dtype
    assert torch.equal(found, torch.matmul(a, b))


@pytest.mark.parametrize("shapes", [((4, 3), (2, 3, 5)), ((1, 4, 3), (3, 3, 5))], ids=str)
def test_products_of_one_matrix_with_many(shapes):
    """Of stride 0: what a spread matrix is."""
    a, b = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    wide = a.expand(len(b), 4, 3)
    for turn in (False, True):
        x = a.expand(len(b), 4, 3).contiguous().mT.contiguous().mT if turn else wide
        assert torch.allclose(xp.matmul(x, b), torch.einsum("bmk,bkn->bmn", x, b))


@pytest.mark.parametrize("shapes", SHAPES[:1] + SHAPES[4:5] + SHAPES[7:8], ids=str)
def test_products_follow_autocast(shapes):
    a, b = map(torch.randn, shapes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = xp.matmul(a, b), torch.matmul(a, b)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


def test_products_under_transforms():
    a, b = torch.randn(6, 3, 4), torch.randn(6, 4, 5)
    assert torch.allclose(torch.vmap(xp.matmul)(a, b), a @ b, atol=1e-6)
    assert torch.allclose(torch.vmap(xp.matmul, (None, 0))(a[0], b), a[0] @ b, atol=1e-6)
    assert torch.allclose(torch.vmap(xp.matmul, (0, None))(a, b[0]), a @ b[0], atol=1e-6)


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
    letter = {i: chr(97 + k) for k, i in enumerate(sizes)}
    equation = ",".join("".join(letter[i] for i in o) for o in operands) + "->" + "".join(letter[i] for i in output)
    expected = torch.einsum(equation, *arrays)
    g = torch.randn(expected.shape, dtype=torch.float64)
    slopes = torch.autograd.grad(expected, arrays, g)
    short = sized(made, arrays)
    assert (short is made) == (1 not in [sizes[i] for i, *_ in made.where])
    assert torch.allclose(run(short, arrays), expected)
    with torch.no_grad():
        for allowed in (0, 1e9):
            result, kept = push(short, arrays, xp, allowed)
            found = pull(short, arrays, kept, g, [True] * len(arrays), xp)
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


def operations(call):
    """How many operations of torch a call takes."""

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.n += 1
            return function(*args, **(kwargs or {}))

    with Count() as count:
        call()
    return count.n


def test_one_input_alone_takes_few_operations():
    """Forwards and backwards: 79 when axes of size 1 were permuted and products expanded."""
    mpo = tnc.decompositions["mpo"](order=2)
    layer = tnc.nn.Linear(1024, 1024, decomposition=mpo, rank=tnc.Ratio(0.01), execution="factorized")
    x, g = torch.randn(1, 1024, requires_grad=True), torch.ones(1, 1024)
    wanted = [x, *layer.parameters()]
    assert operations(lambda: torch.autograd.grad(layer(x), wanted, g)) <= 42
    with torch.no_grad():
        assert operations(lambda: layer(x)) <= 14


def test_gradients_of_many_directions_at_once():
    """Autograd's own vmap over the backward pass of a layer."""
    layer = tnc.nn.Linear(24, 18, decomposition="mpo", rank=3, execution="factorized", dtype=torch.float64)
    x = torch.randn(1, 24, dtype=torch.float64, requires_grad=True)
    y, eye = layer(x), torch.eye(18, dtype=torch.float64)[:, None]
    (found,) = torch.autograd.grad(y, x, eye, is_grads_batched=True)
    assert torch.allclose(found[:, 0], layer.weight)


def test_one_input_alone_has_second_derivatives():
    made = plan((("*", "n"), ("r", "n"), ("m", "r")), ("*", "m"), (("*", 4), ("n", 6), ("r", 2), ("m", 5)))
    arrays = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((1, 6), (2, 6), (5, 2))]
    assert torch.autograd.gradcheck(lambda *a: contracted(made, a), arrays)
    assert torch.autograd.gradgradcheck(lambda *a: contracted(made, a), arrays)
