"""A run of the queue that is killed and goes on ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from benchmarks.papers import segments  # noqa: E402 - after the check that torch is here
from benchmarks.papers.segments import Paused, Segments  # noqa: E402
from benchmarks.papers.study import Method  # noqa: E402
from benchmarks.papers.work import Job, Terms  # noqa: E402
from tests.papers.tiny import data, finished, job, study  # noqa: E402
from tnc.errors import CheckpointError  # noqa: E402


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture
def dies(monkeypatch):
    """Lets the process die at the steps given, counted over trials and run."""
    drawn = Segments._drawn

    def at(*steps):
        count = 0

        def counted_drawn(self, step):
            nonlocal count
            count += 1
            if count in steps:
                raise Killed
            return drawn(self, step)

        monkeypatch.setattr(Segments, "_drawn", counted_drawn)

    return at


def every_two_steps(monkeypatch):
    monkeypatch.setattr("benchmarks.papers.work.pace", lambda *_: 0.5)


@pytest.mark.parametrize("name", ["dense", "adtn", "adtn, frozen", "svd"])
def test_a_killed_run_ends_as_one_that_was_not(name, tmp_path, monkeypatch, dies):
    every_two_steps(monkeypatch)
    whole = job(name).run(data(), Terms(tmp_path / "whole"))
    terms = Terms(tmp_path / "killed", every=2.5)  # five steps per segment, two in the last one
    dies(5, 11, 27)
    kills = 0
    for _ in range(9):
        try:
            run = job(name).run(data(), terms)
            break
        except Killed:
            kills += 1
    assert kills == 3 and finished(run) == finished(whole)
    assert job(name).run(data(), terms) == run  # scored once


def test_weights_after_a_kill_are_those_without_one_to_the_last_bit(tmp_path, monkeypatch, dies):
    every_two_steps(monkeypatch)
    one, other = Terms(tmp_path / "one"), Terms(tmp_path / "other", every=1.0)
    wanted = job("dense").dense(0).network(data(), one).state_dict()
    dies(18)
    with pytest.raises(Killed):
        job("dense").network(data(), other)
    found = job("dense").network(data(), other).state_dict()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_the_choice_of_a_rate_survives_a_kill(tmp_path, monkeypatch, dies):
    every_two_steps(monkeypatch)
    terms = Terms(tmp_path, every=1.0)
    dies(30)  # two trials of all twelve steps, then the run
    with pytest.raises(Killed):
        job().run(data(), terms)
    state = job().state(terms, 72, "rates")
    assert set(state.values["scores"]) == {"0.001", "0.01"}
    monkeypatch.setattr("benchmarks.papers.work.Job._trained", lambda *_: pytest.fail("a trial again"))
    assert job(seed=1).rate(data(), terms) in (1e-3, 1e-2)


def test_time_that_is_over_saves_and_goes_on(tmp_path, monkeypatch):
    every_two_steps(monkeypatch)
    whole = job().run(data(), Terms(tmp_path / "whole"))
    clock = iter(range(10**6))
    monkeypatch.setattr(segments.time, "perf_counter", lambda: float(next(clock)))
    pauses = 0
    while True:
        try:
            run = job().run(data(), Terms(tmp_path / "short", every=1.0, deadline=float(next(clock) + 30)))
            break
        except Paused:
            pauses += 1
            assert pauses < 50
    assert pauses > 1 and finished(run) == finished(whole)


def test_a_run_that_began_from_other_weights_does_not_go_on(tmp_path, monkeypatch, dies):
    every_two_steps(monkeypatch)
    terms = Terms(tmp_path, every=1.0)
    dies(28)
    with pytest.raises(Killed):
        job().run(data(), terms)
    made = Method.made

    def larger(self, dense, data):
        model = made(self, dense, data)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.1)
        return model

    monkeypatch.setattr(Method, "made", larger)
    with pytest.raises(CheckpointError, match=r"began from weights of norm .*: the library makes them in another way"):
        job().run(data(), terms)


@pytest.mark.parametrize(("other", "fitted"), [({}, 1), ({"layers": {}, "narrow": {"1.weight": 200}}, 0)])
def test_a_calibrated_fit_is_made_once(tmp_path, monkeypatch, dies, other, fitted):
    """Not for every rate, and not again after a kill. A narrow network in the same study has none."""
    every_two_steps(monkeypatch)
    of = study()
    of = replace(of, methods=[of.methods[0], replace(of.methods[3], start="calibrated", **other)])
    whole = job("svd", of=of).run(data(), Terms(tmp_path / "whole"))
    made, fits = Method.made, []

    def counted_made(self, dense, data=None):
        fits.append(self.start)
        return made(self, dense, data)

    monkeypatch.setattr(Method, "made", counted_made)
    terms = Terms(tmp_path / "killed", every=1.0)
    dies(60)  # after the dense network and the trials of both rates
    with pytest.raises(Killed):
        job("svd", of=of).run(data(), terms)
    assert len(list((tmp_path / "killed").rglob("*.fit.safetensors"))) == fitted
    assert finished(job("svd", of=of).run(data(), terms)) == finished(whole)
    assert not fitted or fits.count("calibrated") == 1
    assert not list((tmp_path / "killed").rglob("*.fit.safetensors"))


def test_of_several_starts_the_one_with_the_least_loss_goes_on(tmp_path, monkeypatch, dies):
    every_two_steps(monkeypatch)
    of = replace(study(), recipe=replace(study().recipe, rates=(1e-2,)))
    of = replace(of, methods=[replace(method, starts=3) for method in of.methods if method.name == "adtn"])
    of = replace(of, methods=[study().methods[0], *of.methods])
    seeds, trained = [], Job._trained

    def spy(self, *given, seed=None):
        seeds.append(seed)
        return trained(self, *given, seed=seed)

    monkeypatch.setattr(Job, "_trained", spy)
    one = job("adtn", of=of)
    whole = one.run(data(), Terms(tmp_path / "whole"))
    losses = one.state(Terms(tmp_path / "whole"), 72).values["losses"]
    assert (
        seeds[:3] == [0, 100, 200] and seeds[3] == int(min(losses, key=losses.get)) and len(set(losses.values())) == 3
    )

    terms = Terms(tmp_path / "killed", every=1.0)
    dies(17)  # in the second trial of twelve steps
    with pytest.raises(Killed):
        one.run(data(), terms)
    seeds.clear()
    assert finished(one.run(data(), terms)) == finished(whole)
    assert seeds == [100, 200, int(min(losses, key=losses.get))]


KILL = """
import os, signal
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.papers import tiny
from benchmarks.papers.segments import Segments
drawn = Segments._drawn
count = 0
def dying(self, step):
    global count
    count += 1
    if count == 32:  # after two trials of twelve steps, at the eighth step of the run
        os.kill(os.getpid(), signal.SIGKILL)
    return drawn(self, step)
Segments._drawn = dying
import benchmarks.papers.work as work
work.pace = lambda *_: 0.5
print(tiny.finished(tiny.job().run(tiny.data(), work.Terms(Path({folder!r}), every=1.0))))
"""


def test_kill_minus_nine(tmp_path, monkeypatch):
    every_two_steps(monkeypatch)
    whole = finished(job().run(data(), Terms(tmp_path / "whole")))
    script = KILL.format(folder=str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    end = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert end.returncode == -signal.SIGKILL and not end.stdout, end.stderr
    state = job().state(Terms(tmp_path), 72)
    assert state.values["progress"] == 6 and "run" not in state.values
    assert finished(job().run(data(), Terms(tmp_path, every=1.0))) == whole
