"""``tnc plugins``: the installed plugins, their distributions, and whether they can be loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tnc.cli.terminal import show, show_json

if TYPE_CHECKING:
    from rich.table import Table

    from tnc.registry import Registry

__all__ = ["plugins"]


def plugins(as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False) -> None:
    """List installed decompositions and backends, with their distributions and why one does not load."""
    from tnc import backends, registry

    groups = {
        "decompositions": _rows(registry.decompositions, registry.decompositions.__getitem__),
        "backends": _rows(registry.backends, backends.get),
    }
    if as_json:
        show_json(groups)
    else:
        show(*(_table(kind, rows) for kind, rows in groups.items()))


def _rows(group: Registry, load: Callable[[str], Any]) -> list[dict[str, Any]]:
    """One row for each plugin of `group`: what its entry point says, and why `load` fails, if it does."""
    rows = []
    for plugin in group.plugins():
        loaded, problem = _outcome(partial(load, plugin.name))
        rows.append({**asdict(plugin), "summary": _summary(loaded), "loads": not problem, "problem": problem})
    return rows


def _outcome(load: Callable[[], Any]) -> tuple[Any, str]:
    """The plugin, or the error."""
    try:
        return load(), ""
    except Exception as error:  # a foreign plugin may raise anything; the list must go on
        return None, f"{type(error).__name__}: {error}"


def _summary(loaded: Any) -> str:
    """First line of the docstring of a class, or of the class of an instance."""
    kind = loaded if isinstance(loaded, type) else type(loaded)
    return "" if loaded is None else (kind.__doc__ or "").strip().partition("\n")[0]


def _table(kind: str, rows: list[dict[str, Any]]) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        "name", "distribution", "version", "what it is", title=kind, title_justify="left", box=box.SIMPLE_HEAD
    )
    for row in rows:
        words = escape(row["summary"]) if row["loads"] else f"[red]does not load:[/] {escape(row['problem'])}"
        table.add_row(escape(row["name"]), row["distribution"], row["version"], words)
    return table
