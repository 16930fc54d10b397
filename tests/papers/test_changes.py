"""What becomes of a network's large layers before it is trained."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the check that torch is here

from benchmarks.papers.changes import Format, aligned, compressed, tensorized  # noqa: E402


def model():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32, bias=False))
    with torch.no_grad():  # something to turn to, in noise
        made[0].weight += 0.3 * torch.outer(torch.linspace(-1, 1, 64), torch.linspace(0, 1, 16))
    return made


def cosine(a, b):
    return float((a * b).sum() / a.norm() / b.norm())


@pytest.mark.parametrize("depth", [1, 2])
def test_aligned_cores_are_as_large_as_the_weights_and_turned_towards_them(depth):
    targets = {name: weight.detach() for name, weight in model().named_parameters() if weight.ndim == 2}
    layers = {name: Format(f"adtn(depth={depth})", 2) for name in targets}
    sizes = {name: float(target.square().mean()) for name, target in targets.items()}
    torch.manual_seed(1)
    start = tensorized(model(), layers)
    torch.manual_seed(1)
    made = aligned(model(), layers)
    for name, target in targets.items():
        path = name.removesuffix(".weight")
        before, after = (net.get_submodule(path).weight.detach() for net in (start, made))
        assert float(after.square().mean()) == pytest.approx(sizes[name], rel=1e-4)
        assert cosine(after, target) > max(0.1, cosine(before, target) + 0.05)
    torch.testing.assert_close(made[0].bias, model()[0].bias)


def test_the_best_fit_of_a_wall_to_noise_is_small_and_an_aligned_one_is_not():
    """Why the two stages do not begin at the closed form."""
    layers = {"0.weight": Format("adtn(depth=1)", 2)}
    sizes = []
    for way in (compressed, aligned):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(512, 1024))
        target = net[0].weight.detach().clone()
        sizes.append(float(way(net, layers)[0].weight.detach().norm() / target.norm()))
    assert sizes[0] < 0.1 and sizes[1] == pytest.approx(1, rel=1e-4)
