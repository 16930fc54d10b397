"""One run of the queue: one method with one seed, trained from its state file to the end, and scored once."""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

import tnc
from benchmarks.papers.segments import EVERY, Paused, Segments, go_on, pace
from benchmarks.papers.state import State
from benchmarks.papers.study import Method, Row, Study
from benchmarks.papers.train import START_TRIAL, Data, Recipe, accuracy, device, loss
from tnc import files
from tnc.errors import CheckpointError, TncError

__all__ = ["GPU_BATCH", "Job", "Terms"]

GPU_BATCH = 4
"""How many times as large a batch is on a GPU. The rate grows with its root, as is usual for Adam."""
SEEDS_APART = 100
"""Between the seeds of the starts of one run, so that no two runs share one."""


@dataclass(frozen=True)
class Terms:
    """What holds for all runs of a queue.

    Attributes
    ----------
    folder : Path
        Where the states are.
    share : float
        Share of every full schedule.
    gpu : bool
        Mixed precision and larger batches.
    deadline : float
        Time of `time.perf_counter` at which everything must be saved.
    every : float
        Seconds between two saves, about.
    mixed : bool
        Mixed precision without the larger batches.
    """

    folder: Path
    share: float = 1.0
    gpu: bool = False
    deadline: float = math.inf
    every: float = EVERY
    mixed: bool = False

    def recipe(self, study: Study) -> Recipe:
        """The recipe of a study on this device."""
        given = study.recipe
        if not self.gpu:
            return given
        return replace(
            given, batch=GPU_BATCH * given.batch, rates=tuple(rate * math.sqrt(GPU_BATCH) for rate in given.rates)
        )

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of mixed precision."""
        return torch.bfloat16 if self.gpu or self.mixed else None

    def steps(self, study: Study, size: int) -> int:
        """Planned steps of a run on `size` training examples."""
        return max(1, round(self.share * self.recipe(study).steps(size)))

    def schedule(self, study: Study) -> str:
        """The recipe in words."""
        return str(self.recipe(study)) + (", bfloat16" if self.autocast else "")


@dataclass(frozen=True)
class Job:
    """One method of a study with one seed.

    Attributes
    ----------
    paper : str
    study : Study
    method : Method
    seed : int
    counts : Row
        The row of `counted` for this method.
    """

    paper: str
    study: Study
    method: Method
    seed: int
    counts: Row

    @property
    def name(self) -> str:
        """What messages and ``--row`` call it."""
        return f"{self.paper}/{self.study.net}-{self.study.data}/{self.method.name}/{self.seed}"

    @property
    def needs_dense(self) -> bool:
        """Whether the run starts from the trained dense network, or is taught by it."""
        if self.method.kind == "dense":
            return False
        return self.method.start in ("fit", "calibrated", "aligned") or self.study.recipe.taught

    def dense(self, seed: int) -> Job:
        """The run that trains the dense network with a seed."""
        method = next(method for method in self.study.methods if method.kind == "dense")
        whole = {"replaced": self.counts["dense_replaced"], "whole": self.counts["dense_whole"]}
        return Job(self.paper, self.study, method, seed, {**self.counts, **whole, "method": method.name})

    def state(self, terms: Terms, size: int, what: str = "") -> State:
        """The state of this run on `size` training examples, or of `what` that all seeds of its method share.

        Raises
        ------
        CheckpointError
            The file is damaged, or of other settings.
        """
        seed = {} if what else {"seed": self.seed}
        settings: dict[str, Any] = {
            "net": self.study.net,
            "data": self.study.data,
            "method": self.method.name,
            **seed,
            "steps": terms.steps(self.study, size),
            "schedule": terms.schedule(self.study),
            "parameters": [self.counts["replaced"], self.counts["whole"]],
        }
        if self.method.core_rate is not None:
            settings["core_rate"] = self.method.core_rate
        leaf = f"{_plain(self.method.name)}-{what or f'seed{self.seed}'}.json"
        where = terms.folder / ("gpu" if terms.gpu else "cpu") / self.paper / f"{self.study.net}-{self.study.data}"
        return State(where / leaf, settings)

    # ------------------------------------------------------------------------------------------------ training

    def run(self, data: Data, terms: Terms) -> Row:
        """Train to the end and score once, or return what an earlier process scored.

        Raises
        ------
        Paused
            The time is over; everything is saved.
        CheckpointError
            A state is damaged or of other settings, or a file cannot be written.
        TncError
            The loss is not finite any more.
        """
        state = self.state(terms, len(data.train.y))
        if "run" in state.values:
            return dict(state.values["run"])
        state.put()  # from here on the row has been started
        dense = self.dense(self.seed).network(data, terms) if self.needs_dense else None
        rate = self.rate(data, terms)
        steps = terms.steps(self.study, len(data.train.y))
        seed = self.start(state, data, terms, rate, dense)
        model, seconds = self._trained(state, data, terms, rate, steps, dense, seed=seed)
        scores = {"validation": accuracy(model, data, data.validation), "accuracy": accuracy(model, data, data.test)}
        if self.method.kind == "dense":
            _keep(model, state.beside("weights.safetensors"))
        steps *= self.method.trained
        run = {"seed": self.seed, **scores, "steps": steps, "seconds": round(seconds, 1)}
        state.put(run=run, rate=rate)
        for file in (state.beside("safetensors"), self._fit(data, terms)):
            file.unlink(missing_ok=True)
        return run

    def network(self, data: Data, terms: Terms) -> nn.Module:
        """The network after training, for a dense one; it is trained first if it has not been."""
        torch.manual_seed(self.seed)
        model = self.method.made(None).to(device())
        if not self.method.trained:
            return model.eval()
        self.run(data, terms)
        path = self.state(terms, len(data.train.y)).beside("weights.safetensors")
        try:
            model.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise CheckpointError(
                f"the weights {str(path)!r} are damaged ({error}): delete all files of this run"
            ) from error
        return model.eval()

    def rate(self, data: Data, terms: Terms) -> float:
        """The learning rate with the best validation after a short schedule with seed 0, the same for all seeds.

        Every trial is saved as a run is, and its score is kept.
        """
        recipe = terms.recipe(self.study)
        if len(recipe.rates) == 1 or not self.method.trained:
            return recipe.rates[0]
        state = self.state(terms, len(data.train.y), "rates")
        scores: dict[str, float] = dict(state.values.get("scores", {}))
        steps = recipe.trial(terms.steps(self.study, len(data.train.y)))
        first = replace(self, seed=0)
        for rate in recipe.rates:
            if (key := f"{rate:g}") in scores:
                continue
            dense = first.dense(0).network(data, terms) if first.needs_dense else None
            try:
                model, _ = first._trained(state, data, terms, rate, steps, dense, f"{key}.")
                scores[key] = accuracy(model, data, data.validation)
            except CheckpointError:
                raise
            except TncError:  # with this rate the loss does not stay finite
                scores[key] = 0.0
            state.put(scores=scores)
            state.beside(f"{key}.safetensors").unlink(missing_ok=True)
        return max(recipe.rates, key=lambda rate: scores[f"{rate:g}"])

    def start(self, state: State, data: Data, terms: Terms, rate: float, dense: nn.Module | None) -> int:
        """The seed of the weights: that of the random start with the least validation loss after a short schedule."""
        if self.method.starts == 1:
            return self.seed
        losses: dict[str, float] = dict(state.values.get("losses", {}))
        steps = terms.recipe(self.study).trial(terms.steps(self.study, len(data.train.y)), START_TRIAL)
        seeds = [self.seed + SEEDS_APART * number for number in range(self.method.starts)]
        for seed in seeds:
            if (key := str(seed)) in losses:
                continue
            model, _ = self._trained(state, data, terms, rate, steps, dense, f"start{key}.", seed=seed)
            losses[key] = loss(model, data, data.validation)
            state.put(losses=losses)
            state.beside(f"start{key}.safetensors").unlink(missing_ok=True)
        return min(seeds, key=lambda seed: losses[str(seed)])

    def _trained(
        self,
        state: State,
        data: Data,
        terms: Terms,
        rate: float,
        steps: int,
        dense: nn.Module | None,
        part: str = "",
        seed: int | None = None,
    ) -> tuple[nn.Module, float]:
        """The trained network, and the seconds that its training took in all processes together."""
        if time.perf_counter() > terms.deadline:
            raise Paused
        torch.manual_seed(self.seed if seed is None else seed)
        model = self._made(dense, data, terms).to(device())
        if not self.method.trained:
            return model, 0.0
        _check_start(state, model, f"{part}start")
        for network in (model, dense):
            _lay_out(network, self._rebuilds(terms))
        recipe = terms.recipe(self.study)
        state.put(**self._pace(state.values, model, data, terms, dense))
        length = max(1, min(steps, round(terms.every / state.values["seconds_per_step"])))
        if not (file := state.beside(f"{part}safetensors")).is_file():
            state.put(**{f"{part}length": length})
        batches = Segments(
            data,
            recipe,
            steps=steps,
            seed=self.seed,
            length=state.values.get(f"{part}length", length),
            expected=length * state.values["seconds_per_step"],
            deadline=terms.deadline,
            saved=lambda done: state.put(**{f"{part}progress": done}),
        )
        return model, go_on(model, batches, rate, file, dense, terms.autocast, self.method.core_rate)

    def _made(self, dense: nn.Module | None, data: Data, terms: Terms) -> nn.Module:
        """The network before training. A calibrated fit takes minutes, so it is kept for the trials and the run."""
        file = self._fit(data, terms)
        if self.method.start != "calibrated" or self.method.narrow:
            return self.method.made(dense, data)
        if not file.is_file():
            tnc.nn.save(self.method.made(dense, data), file)
        return tnc.nn.load(copy.deepcopy(dense), file, execution="dense" if self._rebuilds(terms) else "auto")

    def _rebuilds(self, terms: Terms) -> bool:
        """Whether convolutions with cores rebuild their kernels in every step: those of calibrated fits in bfloat16.

        A step through the cores would take half as long again, because maps are copied between them.
        """
        return self.method.start == "calibrated" and terms.autocast is not None

    def _fit(self, data: Data, terms: Terms) -> Path:
        """Where the calibrated fit of this run is kept until the run ends."""
        return self.state(terms, len(data.train.y)).beside("fit.safetensors")

    def _pace(
        self, known: Mapping[str, Any], model: nn.Module, data: Data, terms: Terms, dense: nn.Module | None
    ) -> dict[str, float]:
        """Seconds per step, measured once; the random numbers of the run do not notice."""
        if "seconds_per_step" in known:
            return {}
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            return {"seconds_per_step": pace(model, data, terms.recipe(self.study), dense, terms.autocast)}


def _plain(name: str) -> str:
    """A name of a method as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9=.]+", "-", name).strip("-")


def _lay_out(model: nn.Module | None, rebuilds: bool) -> None:
    """Put the channels of convolutions last, which makes a step of a dense one on a CPU a third shorter.

    It helps convolutions with cores, too, if they rebuild their kernels (`rebuilds`). For others it brings nothing.
    """
    layers = [] if model is None else [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    if rebuilds or all(type(layer) is nn.Conv2d for layer in layers):
        for layer in layers:
            layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _check_start(state: State, model: nn.Module, key: str) -> None:
    """Raise CheckpointError if a run was begun from other weights, as another version of the library makes them.

    The norm of the weights tells. It is rounded, as a fit differs a little from machine to machine.
    """
    norm = f"{float(torch.cat([weight.detach().flatten() for weight in model.parameters()]).norm()):.4g}"
    if (before := state.values.get(key, norm)) != norm:
        raise CheckpointError(
            f"the state {str(state.path)!r} began from weights of norm {before}, and they have norm {norm} here: the "
            "library makes them in another way now. Name another folder by --state, or delete the files of this run"
        )
    if key not in state.values:
        state.put(**{key: norm})


def _keep(model: nn.Module, path: Path) -> None:
    """Write the weights; if that fails, the earlier file stays."""
    with files.writing(path) as write:
        write(save({name: value.contiguous() for name, value in model.state_dict().items()}))
