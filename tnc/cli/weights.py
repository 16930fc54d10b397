"""``tnc compress`` and ``tnc inspect``: safetensors files in, tables or JSON out."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer

from tnc.cli.terminal import bars, show, show_json
from tnc.errors import CheckpointError, MatchError

__all__ = ["compress", "inspect"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


def compress(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Weights, a .safetensors file.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The checkpoint to write; may be IN.")],
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB=METHOD@RANK",
            help="Such as '*.fc*=mpo(order=4)@ratio:0.1'; may be repeated, the first match wins. RANK is 8, 0.1, "
            "ratio:0.1, tolerance:0.02 or budget:0.1.",
        ),
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Where to compute: numpy, torch:cuda, cupy, ...")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything but write OUT.")] = False,
    as_json: Json = False,
) -> None:
    """Factorize the weights that match a rule; the others are copied."""
    from tnc.checkpoint import read_weights
    from tnc.weights import Rule, compress_weights

    if not rule:
        raise MatchError("no rule given: add --rule 'GLOB=METHOD@RANK', such as --rule '*=svd@ratio:0.1'")
    rules = [Rule.parse(text) for text in rule]
    _check_target(target)  # before hours of work, not after
    weights = read_weights(source)
    if weights.factorized:
        raise CheckpointError(f"{source} is compressed already ({len(weights.factorized)} weights): give the original")
    with bars() as track:
        checkpoint = compress_weights(weights, rules, backend=backend, seed=seed, progress=track)
    if not dry_run:
        checkpoint.save(target)
    report = checkpoint.report
    written = None if dry_run else target.stat().st_size
    if as_json:
        totals = {"parameters_before": report.total, "parameters_after": report.total_after}
        show_json({"file": str(target), "bytes": written, **totals, "rows": json.loads(report.to_json())["rows"]})
    else:
        words = f"{target} would be written (dry run)" if dry_run else f"{target}: {written:,} bytes"
        show(report.table(), f"{words}; {source}: {source.stat().st_size:,} bytes")


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint, or any .safetensors file.")],
    as_json: Json = False,
) -> None:
    """Show what a file holds: every weight with its network, ranks, parameters and error."""
    from tnc.checkpoint import read_weights

    checkpoint = read_weights(file)
    rows = [_row(checkpoint, name) for name in checkpoint]
    before, after = (sum(row[key] for row in rows) for key in ("before", "after"))
    if as_json:
        totals = {"parameters_before": before, "parameters_after": after}
        show_json({"file": str(file), "bytes": file.stat().st_size, **totals, "rows": rows})
    else:
        share = f" ({after / before:.2%})" if before else ""
        show(_table(rows), f"{after:,} of {before:,} parameters{share}; {file.stat().st_size:,} bytes")


def _check_target(target: Path) -> None:
    if target.is_dir():
        raise CheckpointError(f"{target} is a folder: name the file to write, such as {target / 'small.safetensors'}")
    if not target.parent.is_dir():
        raise CheckpointError(f"cannot write {target}: the folder {target.parent} does not exist; create it first")


def _row(checkpoint: Any, name: str) -> dict[str, Any]:
    """What the file says of one name; the parameters of a tied weight count where it lives."""
    entry, home = checkpoint[name], checkpoint.aliases.get(name, name)
    factorized = checkpoint.factorized.get(home)
    errors = {row.name: row.error for row in checkpoint.report.rows}
    size = prod(entry.shape) if home == name else 0
    return {
        "name": name,
        "method": (checkpoint.methods.get(home) or "unnamed") if factorized else "dense",
        "shape": list(entry.shape),
        "dtype": "bfloat16" if home in checkpoint.narrow else str((factorized.cores[0] if factorized else entry).dtype),
        "pattern": factorized.network.pattern if factorized else "",
        "ranks": list(factorized.network.ranks) if factorized else [],
        "before": size,
        "after": factorized.n_params if factorized and size else size,
        "error": errors.get(home) if factorized else 0.0,
        "tied_to": home if home != name else None,
    }


def _table(rows: list[dict[str, Any]]) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("name", "method", "shape", "dtype", "ranks", "before", "after", "error", "pattern"):
        right = heading in ("before", "after", "error")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for row in rows:
        method = f"tied to {row['tied_to']}" if row["tied_to"] else row["method"]
        shape, ranks = ("×".join(map(str, row["shape"])), " ".join(map(str, row["ranks"])))
        error = "" if row["error"] is None or not row["pattern"] else f"{row['error']:.4f}"
        cells = [row["name"], method, shape, row["dtype"], ranks, f"{row['before']:,}", f"{row['after']:,}", error]
        table.add_row(*map(escape, (*cells, row["pattern"])))
    return table
