"""Plugins by name: a `Registry` of one entry-point group of `importlib.metadata`.

A list of plugins imports none of them. A look-up imports one plugin and checks its class. The plugins of this project
are found in the same way as those of other distributions.
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
    """What an entry point says of a plugin. The plugin is not imported."""

    name: str
    target: str
    distribution: str
    version: str


def _search_path() -> tuple[Any, ...]:
    """Folders that packages are found in, and when each last changed. What is installed depends on these only."""
    folders = [(path, path or ".") for path in sys.path]  # an empty entry is the current folder
    return tuple((path, os.stat(folder).st_mtime_ns if os.path.isdir(folder) else 0) for path, folder in folders)


@lru_cache(maxsize=16)
def _installed(group: str, search_path: tuple[Any, ...]) -> tuple[Plugin, ...]:
    """The plugins of a group. They are cached, because reading all distributions takes about 10 ms."""
    rows = set()
    for entry in metadata.entry_points(group=group):
        distribution, version = (entry.dist.name, entry.dist.version) if entry.dist else ("unknown", "")
        rows.add((entry.name, entry.value, distribution, version))
    return tuple(Plugin(*row) for row in sorted(rows))


class Registry(Mapping[str, Any]):
    """The installed plugins of one entry-point group, as a mapping from name to class.

    Parameters
    ----------
    group : str
        Entry-point group.
    base : str
        The class that every plugin must derive from, as ``module:class``.

    Raises
    ------
    UnknownNameError
        By ``registry[name]``: no plugin has this name.
    PluginError
        By ``registry[name]``: several plugins have this name, or it does not import, or its class is wrong.
    """

    def __init__(self, group: str, base: str) -> None:
        self.group, self.base = group, base

    def plugins(self) -> list[Plugin]:
        """The plugins of this group, sorted by name. None is imported."""
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
        except TncError:  # such as MissingExtraError, which says what to install
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
        """An instance from text such as ``"mpo"`` or ``"mpo(order=4, rows=(4, 4))"``. Values are Python literals.

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
        options = _options(name, call, text)
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


def _options(name: str, call: str, text: str) -> dict[str, Any]:
    """The keyword arguments of a call such as ``(order=4)``. All values must be literals."""
    try:
        node: Any = ast.parse(f"dict{call}", mode="eval").body
        options = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
        if node.args or len(options) < len(node.keywords) or not isinstance(node.func, ast.Name):
            raise ValueError("positional or repeated arguments, or two calls")
        for value in options.values():  # some literals print as something else: ``...``, 1e999
            ast.literal_eval(repr(value))
    except (
        SyntaxError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
        MemoryError,
    ):  # the last two: deep nesting
        raise PluginError(f"{text!r} does not parse: write {name}(field=value, ...) with literal values") from None
    return options


def _resolve(target: str) -> Any:
    """The object that ``module:attribute`` names."""
    module, _, attributes = target.partition(":")
    target_object: Any = import_module(module)
    for attribute in filter(None, attributes.split(".")):
        target_object = getattr(target_object, attribute)
    return target_object


decompositions = Registry("tnc.decompositions", "tnc.decomposition:Decomposition")
"""Installed decompositions: ``decompositions["mpo"]`` is a class."""

backends = Registry("tnc.backends", "tnc.backends:Backend")
"""Installed backends: ``backends["torch"]`` is a class."""
