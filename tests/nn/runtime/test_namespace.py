"""The array namespace of layers, and plans for one input alone: what is left out must not tell."""

import subprocess
import sys

import pytest

import tnc
from tnc.contract.plans import plan

torch = pytest.importorskip("torch")

from tnc.nn.runtime import namespace  # noqa: E402
from tnc.nn.runtime.autograd import RECORDED  # noqa: E402
from tnc.nn.runtime.namespace import xp  # noqa: E402

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


@pytest.mark.pairwise("shapes and layout choose the call, the dtype is passed on")
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
    assert torch.autograd.gradcheck(lambda *a: RECORDED.run(made, a), arrays)
    assert torch.autograd.gradgradcheck(lambda *a: RECORDED.run(made, a), arrays)


ALONE = """
import tnc.nn
from tnc.nn.runtime.namespace import recycle
import torch
from torch.optim import optimizer
before = recycle.cache_info().currsize, len(optimizer._global_optimizer_post_hooks)
tnc.nn.Linear(64, 64, decomposition="svd", rank=2)
print(before, recycle.cache_info().currsize)
"""


def test_importing_changes_nothing_in_the_process():
    """No memory is taken and no hook of optimizers is registered before the first compressed layer is made."""
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "(0, 0) 1"


def test_memory_is_recycled_on_the_cpu_whatever_the_default_device():
    """A model may be made on the meta device first; on a GPU 32 MiB would be taken for nothing."""
    made = []

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            answer = function(*args, **(kwargs or {}))
            made.append(answer.device.type)  # not the tensor: torch detaches an answer that somebody else holds
            return answer

    with torch.device("meta"), Seen():
        namespace.recycle.__wrapped__()
    assert made == ["cpu"]
