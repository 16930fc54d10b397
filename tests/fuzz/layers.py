"""Layers of any kind, factorized in any way: what they answer is what the dense layer of their weights answers.

A case draws a layer, a decomposition, a rank, a dtype, an execution, a batch and a mode. Outputs and gradients are
compared with those of the layer made dense; then a core is written in one of many ways, and they are compared again;
then copies and files.
"""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from io import BytesIO
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import tnc
from tests.fuzz.drawn import KINDS, Drawn
from tests.nn.layers.test_stale import WAYS, by_dlpack, by_numpy
from tnc.errors import TncError, WeightError
from tnc.nn.runtime.schedule import EXECUTIONS
from tnc.nn.surgery.parameters import factorizations

Random = np.random.Generator

DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
MODES = ("training", "evaluation", "no_grad", "inference_mode", "frozen")
BATCHES = (0, 1, 1, 2, 5, 33, 130)

ROUNDINGS = 8
"""Relative error of a norm that is allowed, in roundings of the dtype times the conditioning of the cores."""


class Case(NamedTuple):
    """What is compared, and how."""

    model: nn.Module
    drawn: Drawn
    mode: str
    batch: int


# ------------------------------------------------------------------ making


def rank_of(plugin: str, rng: Random) -> Any:
    """A rank or a ratio; the depth of `adtn`."""
    if plugin == "adtn":
        return int(rng.integers(1, 3))
    return [int(rng.integers(1, 5)), float(rng.choice([0.2, 0.5, 0.8]))][rng.integers(2)]


def factorized(module: nn.Module, rng: Random) -> nn.Module:
    """Fitted, or with random cores."""
    plugin, execution = str(rng.choice(sorted(tnc.decompositions))), str(rng.choice(EXECUTIONS))
    rank = rank_of(plugin, rng)
    if rng.random() < 0.1:
        return tnc.compress(module, plugin, rank=rank, execution=execution, seed=int(rng.integers(100)))
    return tnc.nn.tensorize(module, plugin, rank, execution=execution, clip=bool(rng.integers(2)))


def conditioning(model: nn.Module) -> float:
    """How much larger the terms of a weight are than their sum; rounding errors grow likewise."""
    worst = 1.0
    for *_, cores in factorizations(model):
        with torch.no_grad():
            held = [core.double() for core in cores.held()]
            if cores.network.feed is None:
                terms = cores.rebuilt(*(core.abs() for core in held)).norm()
                worst = max(worst, float(terms / cores.rebuilt(*held).norm().clamp_min(1e-30)))
    return worst


# --------------------------------------------------------------- comparing


def total(output: Any) -> Tensor:
    """One number that depends on all of an output."""
    if isinstance(output, tuple | list):
        return torch.stack([total(part) for part in output if part is not None]).sum()
    return (output.double() * torch.linspace(0.5, 1.5, output.numel()).view(output.shape)).sum()


def flat(output: Any) -> list[Tensor]:
    if isinstance(output, tuple | list):
        return [x for part in output for x in flat(part)]
    return [] if output is None else [output]


def differ(found: list[Tensor], expected: list[Tensor], allowed: float, least: float = 0.0) -> str | None:
    """Where two lists of tensors are not the same, if they are not; `least` is the smallest norm that counts."""
    if len(found) != len(expected):
        return f"{len(found)} tensors for {len(expected)}"
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return f"tensor {k} is {a.dtype} {tuple(a.shape)} for {b.dtype} {tuple(b.shape)}"
        with torch.no_grad():
            gap, size = float((a.double() - b.double()).norm()), float(b.double().norm())
        if not gap <= allowed * max(size, least) + 1e-30:
            return f"tensor {k} of {len(found)} differs by {gap:.3g} of {size:.3g}, allowed {allowed:.3g} of it"
    return None


def learnable(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def answers(module: nn.Module, case: Case) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, and the gradients of inputs and parameters by their names."""
    inputs = case.drawn.inputs(case.batch)
    learns = case.mode not in ("no_grad", "inference_mode")
    around = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(case.mode, nullcontext)
    module.train(case.mode == "training")
    with around():
        if learns:
            inputs = tuple(x.requires_grad_() if learnable(x) else x for x in inputs)
        output = module(*inputs)
    if not learns:
        return flat(output), {}
    module.zero_grad()
    if (loss := total(output)).requires_grad:  # nothing of a frozen table does
        loss.backward()
    held = {f"input {k}": x for k, x in enumerate(inputs) if learnable(x)} | dict(module.named_parameters())
    return flat(output), {name: x.grad for name, x in held.items() if x.requires_grad and x.grad is not None}


def through(model: nn.Module, gradients: dict[str, Tensor], least: float) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients by the names of the factorized model, and the norms of the terms that they are sums of.

    Those of dense weights, of norm `least` where no terms cancel, go on to the cores these are made of.
    """
    found, sizes = dict(gradients), dict[str, float]()
    names = {id(p): name for name, p in model.named_parameters()}
    for name, *_, cores in factorizations(model):
        held = cores.held()
        if (whole := found.pop(name, None)) is None or not held[0].requires_grad:
            continue
        wide = [core.detach().double().requires_grad_() for core in held]
        weight = cores.rebuilt(*wide)
        size = max(float(whole.double().norm()), least) * float(weight.detach().norm())
        for core, slope in zip(held, torch.autograd.grad(weight, wide, whole.double()), strict=True):
            found[names[id(core)]] = slope.to(core.dtype)
            sizes[names[id(core)]] = size / max(float(core.detach().double().norm()), 1e-30)
    return found, sizes


def natural(case: Case) -> tuple[float, float]:
    """The norm of the inputs, and by how much weights make norms larger, where no terms cancel."""
    inputs = [x for x in case.drawn.inputs(case.batch) if isinstance(x, Tensor)]
    size = max(float(x.double().norm()) if learnable(x) else x.numel() ** 0.5 for x in inputs)
    gain = 0.0
    for *_, cores in factorizations(case.model):
        shape = cores.shape
        with torch.no_grad():
            weight = cores.rebuilt(*(core.double() for core in cores.held()))
        gain = max(gain, float(weight.norm()) / max(shape[0], prod(shape[1:])) ** 0.5)
    return size, gain


def compared(case: Case) -> str | None:
    """What is wrong with the answers of a model, or "not in torch" where the dense layer fails as well."""
    twin = tnc.nn.uninstall(copy.deepcopy(case.model))
    try:
        expected, slopes = answers(twin, case)
    except (RuntimeError, NotImplementedError, ValueError, IndexError) as error:
        try:
            answers(case.model, case)
        except (RuntimeError, NotImplementedError, ValueError, IndexError):
            return "not in torch"
        return f"the dense layer says {error}, the factorized one nothing"
    found, gradients = answers(case.model, case)
    dtype = next(core.dtype for *_, cores in factorizations(case.model) for core in cores.held())
    allowed = ROUNDINGS * torch.finfo(dtype).eps * conditioning(case.model)
    size, gain = natural(case)
    if said := differ(found, expected, allowed, size * gain):
        return f"outputs: {said}"
    above = gain * sum(x.numel() for x in found) ** 0.5  # the loss takes all outputs, each about once
    slopes, sizes = through(case.model, slopes, size * above / max(1, case.batch) ** 0.5)
    zero = {name: torch.zeros_like(x) for name, x in (gradients | slopes).items()}
    for name in zero:
        pair = gradients.get(name, zero[name]), slopes.get(name, zero[name])
        if said := differ([pair[0]], [pair[1]], allowed, sizes.get(name, above)):
            return f"gradient of {name}: {said}"
    return None


# ----------------------------------------------------------------- writing


def written(model: nn.Module, rng: Random) -> str | None:
    """Write to a core in any way; refused where the model is frozen, which it is no more afterwards."""
    every = [core for *_, cores in factorizations(model) for core in cores.parameters()]
    core = every[rng.integers(len(every))]
    wide = core.dtype not in (torch.float32, torch.float64, torch.float16)
    ways = [way for way in WAYS if not (wide and way in (by_numpy, by_dlpack))]
    way = ways[rng.integers(len(ways))]
    frozen = any(cores.frozen is not None for *_, cores in factorizations(model))
    if not frozen:
        way(core)
        return None
    before = core.detach().clone()
    with suppress(WeightError, ValueError, BufferError):
        way(core)
    if not torch.equal(before, core.detach()):
        return f"a frozen core was written by {way.__name__}"
    tnc.nn.unfreeze(model)
    return None


def again(case: Case, fresh: nn.Module) -> str | None:
    """What is wrong with copies and files of a model."""
    file = BytesIO()
    tnc.nn.save(case.model, file)
    file.seek(0)
    execution = next(module._tnc.execution for _, module, *_ in factorizations(case.model))
    made: dict[str, Callable[[], nn.Module]] = {
        "deepcopy": lambda: copy.deepcopy(case.model),
        "pickle": lambda: pickle.loads(pickle.dumps(case.model)),
        "file": lambda: tnc.nn.load(fresh, file, execution=execution),
    }
    expected, _ = answers(case.model, case)
    for name, make in made.items():
        found, _ = answers(make(), case)
        if said := differ(found, expected, 4 * torch.finfo(torch.float32).eps):
            return f"{name}: {said}"
    twin = copy.deepcopy(case.model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    twin.load_state_dict(case.model.state_dict())
    found, _ = answers(twin, case)
    said = differ(found, expected, 4 * torch.finfo(torch.float32).eps)
    return said and f"state dict: {said}"


# ---------------------------------------------------------------- verdicts


def verdict(kind: str, rng: Random) -> str:
    """What became of a case; "equal", "refused", "dense" and "not in torch" are well."""
    torch.manual_seed(int(rng.integers(1 << 31)))
    dtype = DTYPES[rng.integers(len(DTYPES))]
    drawn = KINDS[kind](rng, dtype)
    model, fresh = drawn.module.to(dtype), copy.deepcopy(drawn.module).to(dtype)
    try:
        model = factorized(model, rng)
    except TncError:
        return "refused"
    if not any(True for _ in factorizations(model)):
        return "dense"
    case = Case(model, drawn, str(rng.choice(MODES)), int(rng.choice(BATCHES)))
    if case.mode == "frozen":
        tnc.nn.freeze(model)
    said = compared(case)
    if said == "not in torch":
        return said
    said = said or written(model, rng) or compared(case) or again(case, fresh)
    return f"{case.mode}, batch {case.batch}, {dtype}: {said}" if said else "equal"


WELL = ("equal", "refused", "dense", "not in torch")


def run(kind: str, seed: int, times: int) -> tuple[Counter[str], list[str]]:
    """Verdicts on so many layers of a kind, and how to make again what is not well."""
    found, bad = Counter[str](), []
    for k in range(times):
        try:
            said = verdict(kind, np.random.default_rng([seed, k]))
        except Exception as error:
            said = f"RAW {type(error).__name__}: {str(error)[:200]}"
        found[said if said in WELL else "failed"] += 1
        if said not in WELL:
            bad.append(f"{kind}, seed {seed}, number {k}: {said}")
    return found, bad
