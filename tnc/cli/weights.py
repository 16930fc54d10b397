"""``tnc compress`` and ``tnc inspect``: commands for safetensors files. They print tables or JSON."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tnc.cli.terminal import bars, show, show_json
from tnc.errors import CheckpointError, DataError, MatchError, MissingExtraError, listed

if TYPE_CHECKING:
    from rich.table import Table

    from tnc.checkpoint import Checkpoint
    from tnc.jobs import Weighing
    from tnc.roles import AxisRoles
    from tnc.rules import Rule

__all__ = ["compress", "inspect"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


class Objective(StrEnum):
    """What fits minimize."""

    output = "output"
    fisher = "fisher"


Rules = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB=METHOD@RANK",
        help="For example '*.fc*=mpo(order=4)@ratio:0.1'. May be repeated; the first match counts. RANK is 8, 0.1, "
        "ratio:0.1, tolerance:0.02 or budget:0.1 (all matched weights together; budget:0.1,whole: the whole file; "
        "budget:0.1,of=flops,batch=16: operations; of=bytes: bytes).",
    ),
]

Roles = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB=ROLES",
        help="What the axes of weights are, for example '*.experts*=stack columns rows'. May be repeated; the "
        "first match counts. The axes of all others are guessed: (out, in, *kernel) or (stack, out, in).",
    ),
]

Calibration = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Statistics of the model's inputs, which tnc.nn.calibration.Statistics.save wrote: fits then minimize "
        "the errors of outputs. Needs torch. The axes must have the roles that they have in the model: see "
        "--roles. Biases are not corrected; tnc.compress(model, data=...) corrects them.",
    ),
]


def compress(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Weights, a .safetensors file.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The checkpoint to write. It may be IN.")],
    rule: Rules = None,
    roles: Roles = None,
    backend: Annotated[str | None, typer.Option(help="Where to compute: numpy, torch:cuda, cupy, ...")] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    calibration: Calibration = None,
    objective: Annotated[
        Objective,
        typer.Option(
            help="With --calibration: minimize relative errors of outputs, or the rise of the loss that gradients "
            "predict, if the file has moments of gradients."
        ),
    ] = Objective.output,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only predict: choose the ranks, fit and write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Factorize the weights that match a rule. The others are copied."""
    from tnc.checkpoint import read_weights
    from tnc.rules import Rule
    from tnc.weights import compress_weights

    if not rule:
        raise MatchError("no rule given: add --rule 'GLOB=METHOD@RANK', such as --rule '*=svd@ratio:0.1'")
    rules = [Rule.parse(text) for text in rule]
    _check_target(target)  # now, not after hours of work
    weights = read_weights(source)
    if weights.factorized:
        raise CheckpointError(f"{source} is compressed already ({len(weights.factorized)} weights): give the original")
    stated = _roles(roles or [], weights)
    weighings = _weighings(calibration, objective, weights, rules, stated)
    options: dict[str, Any] = {"backend": backend, "seed": seed, "roles": stated, "weighings": weighings}
    with bars() as track:
        done = compress_weights(weights, rules, progress=track, dry_run=dry_run, **options)
    if not dry_run:
        done.save(target)
    report = done.report
    written = None if dry_run else target.stat().st_size
    if as_json:
        totals = {"parameters_before": report.total, "parameters_after": report.total_after}
        show_json({"file": str(target), "bytes": written, **totals, "rows": report.to_dict()["rows"]})
        return
    words = f"{target} would be written (dry run)" if written is None else f"{target}: {written:,} bytes"
    # A pipe may lead to standard output. The table must not be mixed with the file there.
    show(report.table(), f"{words}; {source}: {source.stat().st_size:,} bytes", err=target.is_fifo())


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint, or any .safetensors file.")],
    as_json: Json = False,
) -> None:
    """Show the content of a file: every weight with its network, ranks, parameters and error."""
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


def _roles(texts: list[str], names: Iterable[str]) -> dict[str, AxisRoles]:
    """The roles of the weights that are stated, by name; the first glob that matches counts."""
    from tnc.roles import AxisRoles

    stated: dict[str, AxisRoles] = {}
    for text in texts:
        glob, equal, words = text.partition("=")
        matching = [name for name in names if fnmatchcase(name, glob.strip())]
        if not equal or not matching:
            raise MatchError(
                f"roles {text!r} match no weight: write 'GLOB=ROLES', such as '*.experts*=stack columns rows'. "
                f"Names: {listed(names, 40)}"
            )
        stated = dict.fromkeys(matching, AxisRoles(words)) | stated
    return stated


def _weighings(
    file: Path | None, objective: Objective, weights: Checkpoint, rules: list[Rule], roles: dict[str, AxisRoles]
) -> dict[str, Weighing]:
    """How errors of the weights count, from a file of statistics; the same for all if there is no such file."""
    from tnc.rules import rule_of

    if file is None:
        if objective is not Objective.output:
            raise DataError("--objective needs --calibration: a file of statistics")
        return {}
    try:
        from tnc.nn.calibration import Statistics, weighings_of
    except MissingExtraError as error:
        raise MissingExtraError("--calibration needs PyTorch: pip install 'tncompress[torch]'") from error
    by_rule = {name: first.roles for name in weights if (first := rule_of(name, rules)) and first.roles}
    return weighings_of(Statistics.load(file), weights, roles | by_rule, objective.value)


def _check_target(target: Path) -> None:
    if target.is_dir():
        raise CheckpointError(f"{target} is a folder: name the file to write, such as {target / 'small.safetensors'}")
    if not target.parent.is_dir():
        raise CheckpointError(f"cannot write {target}: the folder {target.parent} does not exist; create it first")


def _row(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """What the file says of one name. Parameters of tied weights count once, under the name of the stored weight."""
    entry, home = checkpoint[name], checkpoint.aliases.get(name, name)
    size = prod(entry.shape) if home == name else 0
    row: dict[str, Any] = {
        "name": name,
        "method": "dense",
        "shape": list(entry.shape),
        "dtype": "",
        "pattern": "",
        "ranks": [],
        "roles": "",
    }
    row |= {"before": size, "after": size, "error": 0.0, "tied_to": home if home != name else None}
    factorized = checkpoint.factorized.get(home)
    if factorized:
        errors = {fitted.name: fitted.error for fitted in checkpoint.report.rows}
        row |= {"method": checkpoint.methods.get(home) or "unnamed", "error": errors.get(home)}
        row |= {"pattern": factorized.network.pattern, "ranks": list(factorized.network.ranks)}
        row |= {"roles": str(factorized.roles or ""), "after": factorized.n_params if size else 0}
    array = factorized.cores[0] if factorized else entry
    row["dtype"] = "bfloat16" if home in checkpoint.narrow else str(array.dtype)
    return row


def _table(rows: list[dict[str, Any]]) -> Table:
    from rich import box

    from tnc import showing

    headings = ("name", "method", "shape", "dtype", "ranks", "before", "after", "error", "pattern")
    cells = [_cells(row) for row in rows]
    columns = [
        showing.Column(heading, [row[k] for row in cells], heading in ("before", "after", "error"))
        for k, heading in enumerate(headings)
    ]
    return showing.table(columns, box=box.SIMPLE_HEAD)


def _cells(row: dict[str, Any]) -> list[str]:
    """Texts of a row of the table."""
    error = row["error"] if row["pattern"] else None
    return [
        row["name"],
        f"tied to {row['tied_to']}" if row["tied_to"] else row["method"],
        "×".join(map(str, row["shape"])),
        row["dtype"],
        " ".join(map(str, row["ranks"])),
        f"{row['before']:,}",
        f"{row['after']:,}",
        "" if error is None else f"{error:.4f}",
        row["pattern"],
    ]
