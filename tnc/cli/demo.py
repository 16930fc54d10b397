"""``tnc demo``: a real network through the whole road."""

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
        typer.Option(help="Such as 'mpo(order=3)'; may be repeated. Default: every installed one."),
    ] = None,
    ratio: Annotated[float, typer.Option(help="Parameters to keep of those in the replaced layers.")] = 0.1,
    epochs: Annotated[float, typer.Option(help="Passes over the training data for the dense network.")] = 2.0,
    tune: Annotated[
        float | None,
        typer.Option(help="The same for each compressed one. Default: 4 in all, at most 1 each.", show_default=False),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time in which to end; fewer steps on a slow machine.")] = 110.0,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Train LeNet-5 on MNIST, compress it with everything installed, and compare."""
    from tnc.nn.demo import run  # torch takes seconds to import

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
