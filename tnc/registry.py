"""Plugins by name: a `Registry` over one entry-point group of `importlib.metadata`.

Listing imports nothing; looking a name up imports that plugin only and checks its class. Our own plugins
are found the same way as a stranger's.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from importlib import import_module, metadata
from typing import Any

from tnc.errors import PluginError, TncError, UnknownNameError, closest, listed

__all__ = ["Plugin", "Registry", "backends", "decompositions"]


@dataclass(frozen=True)
class Plugin:
    """What an entry point says of a plugin, without importing it."""

    name: str
    target: str
    distribution: str
    version: str


def _search_path() -> tuple[Any, ...]:
    """Folders packages are found in, and when each last changed: what is installed depends on nothing else."""
    return tuple((path, os.stat(path or ".").st_mtime_ns if os.path.isdir(path or ".") else 0) for path in sys.path)


@lru_cache(maxsize=16)
def _installed(group: str, search_path: tuple[Any, ...]) -> tuple[Plugin, ...]:
    """The plugins of a group; remembered, because reading every distribution takes some 10 ms."""
    entries = metadata.entry_points(group=group)
    homes = [(e.dist.name, e.dist.version) if e.dist else ("unknown", "") for e in entries]
    found = {(e.name, e.value, *home) for e, home in zip(entries, homes, strict=True)}
    return tuple(Plugin(*row) for row in sorted(found))


class Registry(Mapping[str, Any]):
    """The installed plugins of one entry-point group: name to class.

    Parameters
    ----------
    group : str
        Entry-point group.
    base : str
        ``module:class`` every plugin must derive from.
    """

    def __init__(self, group: str, base: str) -> None:
        self.group, self.base = group, base

    def plugins(self) -> list[Plugin]:
        """Everything installed in this group, sorted by name; nothing is imported."""
        return list(_installed(self.group, _search_path()))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(plugin.name for plugin in self.plugins()))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in set(self)

    def __getitem__(self, name: str) -> Any:
        plugins = self.plugins()
        homes = [plugin for plugin in plugins if plugin.name == name]
        if not homes:
            names = list(dict.fromkeys(plugin.name for plugin in plugins))
            raise UnknownNameError(
                f"{name!r} is not installed in {self.group!r}.{closest(str(name), names)} "
                f"Installed: {listed(names, 30)}. "
                f"Install the distribution that registers {name!r} under the entry-point group {self.group!r}."
            )
        if len(homes) > 1:
            both = " and ".join(f"{p.distribution} {p.version} ({p.target})" for p in homes)
            raise PluginError(f"{name!r} of {self.group!r} is registered by {both}: uninstall one of them.")
        return self._load(homes[0])

    def _load(self, plugin: Plugin) -> Any:
        origin = f"{plugin.name!r} ({plugin.target}, from {plugin.distribution} {plugin.version})"
        try:
            loaded = _resolve(plugin.target)
        except TncError:  # a missing extra already says what to install
            raise
        except Exception as error:
            raise PluginError(
                f"plugin {origin} does not import: {type(error).__name__}: {error}. "
                f"Reinstall or uninstall {plugin.distribution}."
            ) from error
        base = _resolve(self.base)
        if not (isinstance(loaded, type) and issubclass(loaded, base)):
            raise PluginError(f"plugin {origin} is {loaded!r}, not a subclass of {self.base.replace(':', '.')}.")
        return loaded

    def parse(self, text: str) -> Any:
        """An instance from ``"mpo"`` or ``"mpo(order=4, rows=(4, 4))"``; values are Python literals.

        Raises
        ------
        UnknownNameError
            The plugin or one of its fields does not exist.
        PluginError
            The text does not parse, or the plugin refuses the values.
        """
        match = re.fullmatch(r"\s*([\w.-]+)\s*(\(.*\))?\s*", text, re.DOTALL)
        if not match:
            raise PluginError(f"{text!r} is not a plugin: write name or name(field=value, ...)")
        name, call = match[1], match[2] or "()"
        try:
            node: Any = ast.parse(f"dict{call}", mode="eval").body
            options = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
            if node.args or len(options) < len(node.keywords) or not isinstance(node.func, ast.Name):
                raise ValueError("positional, repeated, or called twice")
        except (SyntaxError, ValueError, TypeError, AttributeError):
            raise PluginError(f"{text!r} does not parse: write {name}(field=value, ...) with literal values") from None
        plugin = self[name]
        known = [item.name for item in fields(plugin) if item.init] if is_dataclass(plugin) else []
        for option in options:
            if option not in known:
                raise UnknownNameError(
                    f"{name} has no field {option!r}.{closest(option, known)} Its fields: {listed(known)}."
                )
        try:
            return plugin(**options)
        except (TypeError, ValueError) as error:
            if isinstance(error, TncError):
                raise
            raise PluginError(f"{name} refuses {text!r}: {error}") from error


def _resolve(target: str) -> Any:
    module, _, attributes = target.partition(":")
    found: Any = import_module(module)
    for attribute in filter(None, attributes.split(".")):
        found = getattr(found, attribute)
    return found


decompositions = Registry("tnc.decompositions", "tnc.decomposition:Decomposition")
"""Installed decompositions: ``decompositions["mpo"]`` is a class."""

backends = Registry("tnc.backends", "tnc.backends:Backend")
"""Installed backends: ``backends["torch"]`` is a class."""
