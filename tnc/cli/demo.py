"""``tnc demo``: train, compress and compare a real network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tnc.cli.terminal import bars, show, show_json

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the picture, the scores and the model.")] = Path("tnc-demo"),
    method: Annotated[
        list[str] | None,
        typer.Option(help="Decomposition, such as 'mpo(order=3)'. May be repeated. Default: all that are installed."),
    ] = None,
    ratio: Annotated[float, typer.Option(help="Fraction of the parameters of the replaced layers to keep.")] = 0.1,
    epochs: Annotated[float, typer.Option(help="Passes over the training data for the dense network.")] = 2.0,
    tune: Annotated[
        float | None,
        typer.Option(
            help="Passes to fine-tune each network. Default: 4 for all together, at most 1 each.", show_default=False
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="Time limit. On a slow machine, all networks are fine-tuned for fewer steps.")
    ] = 110.0,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Train LeNet-5 on MNIST, compress it with everything installed, and compare."""
    from tnc.demo.run import run  # torch takes seconds to import

    with bars() as track:
        scores = run(
            out,
            methods=method or (),
            ratio=ratio,
            epochs=epochs,
            tune=tune,
            seconds=seconds,
            seed=seed,
            progress=track,
        )
    if as_json:
        show_json(json.loads(scores.to_json()))
    else:
        show(scores.table(), *(f"{what}: {path}" for what, path in scores.files.items()))
