"""``tnc plugins``: what is installed, from whom, and whether it works here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import typer

from tnc.cli.terminal import show, show_json

__all__ = ["plugins"]


def plugins(as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False) -> None:
    """List installed decompositions and backends, with their distribution and what keeps one from loading."""
    from tnc import backends, registry

    found = {
        "decompositions": _tried(registry.decompositions, registry.decompositions.__getitem__),
        "backends": _tried(registry.backends, backends.get),
    }
    if as_json:
        show_json(found)
    else:
        show(*(_table(kind, rows) for kind, rows in found.items()))


def _tried(group: Any, load: Callable[[str], Any]) -> list[dict[str, Any]]:
    """One row per plugin of `group`: what its entry point says, and why `load` refuses it, if it does."""
    rows = []
    for plugin in group.plugins():
        loaded, problem = _outcome(partial(load, plugin.name))
        rows.append({**asdict(plugin), "summary": _summary(loaded), "loads": not problem, "problem": problem})
    return rows


def _outcome(load: Callable[[], Any]) -> tuple[Any, str]:
    try:
        return load(), ""
    except Exception as error:  # a listing goes on, whatever a stranger's plugin raises
        return None, f"{type(error).__name__}: {error}"


def _summary(loaded: Any) -> str:
    """First line of the docstring of a class, or of an instance's class."""
    kind = loaded if isinstance(loaded, type) else type(loaded)
    return "" if loaded is None else (kind.__doc__ or "").strip().partition("\n")[0]


def _table(kind: str, rows: list[dict[str, Any]]) -> Any:
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
