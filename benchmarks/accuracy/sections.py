"""Sections of the page below the tables: what each part brings, and what labels bring."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["sections"]

Held = dict[str, dict[str, Any]]


def sections(folder: Path) -> list[str]:
    """Lines of Markdown from ``ablation.json`` and ``healing.json`` in a folder, if they exist."""
    return [*_parts(_read(folder / "ablation.json")), *_healed(_read(folder / "healing.json"))]


def _read(path: Path) -> Held:
    held: Held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return held


def _parts(held: Held) -> Iterable[str]:
    """A table for every network: its score after one more part."""
    if not held:
        return
    yield from ("## What each part brings", "")
    yield "Each line is the network after one more part. Distances are those of outputs on held-out calibration inputs,"
    yield from ("relative to their variance. `python -m benchmarks.accuracy.ablation` measures them.", "")
    for name, one in held.items():
        limit = f"the first {one['limit']:,} test samples" if one["limit"] else "all test samples"
        yield from (f"**{name}** ({limit}, {one['samples']} calibration samples)", "")
        yield from ("| part | score | distance |", "| --- | ---: | ---: |")
        for part, found in one["rows"].items():
            distance = f"{found['distance']:.4f}" if "distance" in found else ""
            yield f"| {part} | {found['score']:.4g} | {distance} |"
        yield ""


def _healed(held: Held) -> Iterable[str]:
    """One table: accuracy before and after."""
    if not held:
        return
    yield from ("## Healed with labels", "")
    yield "The row `FORMAT, budget`, and then `tnc.nn.heal(model, loader, teacher=dense)` on 90 % of the training"
    yield "images, flipped and shifted at random. `python -m benchmarks.accuracy.healing` measures it."
    yield from (
        "",
        "| network | compressed | healed | steps | rate | batch normalization | bfloat16 | minutes |",
        "| --- | ---: | ---: | ---: | ---: | --- | --- | ---: |",
    )
    for name, one in held.items():
        numbers = (f"{one[key]:.4g}" for key in ("before", "after", "steps", "rate"))
        how = (one["batch_norm"], "yes" if one["mixed"] else "no", f"{one['seconds'] / 60:.0f}")
        yield f"| {name} | {' | '.join((*numbers, *how))} |"
    yield ""
