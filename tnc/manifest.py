"""The header of a checkpoint file. All of it is checked before any part of it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from tnc import claims
from tnc.contract import bounds
from tnc.contract.recipes import ACTIVATIONS
from tnc.errors import CheckpointError, PatternError, WeightError, listed
from tnc.network import Network
from tnc.report import Report
from tnc.roles import AxisRoles
from tnc.storage import Entry
from tnc.typing import Shape

__all__ = ["VERSION", "Manifest", "NewerError", "Weight", "parse"]

VERSION = 2
"""The format that is written. The first format had no digests; it can still be read."""

_FLOATS = ("F64", "F32", "F16", "BF16")


class NewerError(CheckpointError):
    """The file has a newer format than this version can read."""


class Weight(NamedTuple):
    """A compressed weight without the values of its cores."""

    network: Network
    shape: Shape
    method: str
    roles: AxisRoles | None = None

    def tensors(self, name: str) -> list[str]:
        """Names of the tensors that hold its cores."""
        return [f"{name}.cores.{k}" for k in range(len(self.network.core_shapes))]


class Manifest(NamedTuple):
    """What a checkpoint holds.

    Attributes
    ----------
    names : list of str
        All names, in the order of saving. Those that are not in `weights` are dense.
    weights : dict of str to Weight
        The compressed weights.
    aliases : dict of str to str
        Tied names, and the name that has the weight.
    report : Report
        The report of the compression.
    version : int
        The format of the file.
    """

    names: list[str]
    weights: dict[str, Weight]
    aliases: dict[str, str]
    report: Report
    version: int = VERSION

    def to_json(self) -> str:
        """The header of a file. `parse` is the inverse."""
        weights = {
            name: {"network": weight.network.to_dict(), "shape": list(weight.shape), "method": weight.method}
            | ({"roles": str(weight.roles)} if weight.roles else {})
            for name, weight in self.weights.items()
        }
        header = {"version": self.version, "names": self.names, "weights": weights, "aliases": self.aliases}
        return json.dumps(header | {"report": self.report.to_json()})

    def check(self, entries: Mapping[str, Entry]) -> None:
        """Compare the header with the tensors of the file. Refuse weights that would cost too much to rebuild.

        Raises
        ------
        CheckpointError
            A tensor is missing, is not needed, or has a shape or dtype that its network does not allow. Or a network
            would need an intermediate that is much larger than its weight and its cores.
        """
        wanted: dict[str, str] = {}
        for name in self.names:
            for key in self.weights[name].tensors(name) if name in self.weights else [name]:
                if key in wanted:
                    raise CheckpointError(f"two entries are called {key!r}: rename one before saving")
                wanted[key] = name
        if lost := sorted(set(wanted) - set(entries)):
            raise CheckpointError(f"there is no tensor of {listed(lost)}")
        if odd := sorted(set(entries) - set(wanted)):
            raise CheckpointError(f"there are tensors that belong to nothing: {listed(odd)}")
        for name, weight in self.weights.items():
            _check_cores(name, weight, entries)
            try:
                bounds.check(weight.network, weight.shape)
            except PatternError as error:
                raise CheckpointError(f"weight {name!r}: {error}") from error


def _check_cores(name: str, weight: Weight, entries: Mapping[str, Entry]) -> None:
    cores = [entries[key] for key in weight.tensors(name)]
    shapes, dtypes = tuple(core.shape for core in cores), {core.dtype for core in cores}
    if shapes != weight.network.core_shapes:
        needed = f"{weight.network.pattern!r} needs {listed(map(str, weight.network.core_shapes))}"
        raise CheckpointError(f"{name!r} has cores of shapes {listed(map(str, shapes))}, but {needed}")
    if not dtypes <= set(_FLOATS) or ("BF16" in dtypes and len(dtypes) > 1):
        raise CheckpointError(f"{name!r} has cores of dtypes {listed(sorted(dtypes))}: one floating dtype is needed")


def parse(words: str) -> Manifest:
    """Read a header. Every name, number and network in it is checked.

    Raises
    ------
    CheckpointError
        The text is not JSON, or has a newer format. Or something in it is missing, of the wrong type, unknown or
        inconsistent. The message says what and where.
    """
    header = claims.members(claims.parse(words, "the header"), "the header")
    if "version" not in header:
        raise CheckpointError("the header has no 'version'")
    version = claims.whole(header["version"], "the version", 1)
    if version > VERSION:
        raise NewerError(f"has format {version}, newer than {VERSION}: upgrade tncompress")
    claims.members(header, "the header", ("version", "names", "weights", "aliases", "report"))
    names = [claims.text(name, "a name") for name in claims.items(header["names"], "the list of names")]
    entries = set(names)
    if len(entries) < len(names):
        raise CheckpointError(f"{next(n for n in names if names.count(n) > 1)!r} stands twice in the list of names")
    listing = claims.members(header["weights"], "the list of weights")
    weights = {name: _weight(data, f"weight {name!r}") for name, data in listing.items()}
    if strange := [name for name in weights if name not in entries]:
        raise CheckpointError(f"weights that are not in the list of names: {listed(strange)}")
    aliases = claims.members(header["aliases"], "the list of tied names")
    for name, home in aliases.items():
        if claims.text(home, f"what {name!r} is tied to") not in entries:
            raise CheckpointError(f"{name!r} is tied to {home!r}, but there is no tensor of that name")
        if claims.text(name, "a tied name") in entries:
            raise CheckpointError(f"{name!r} is an entry and also tied to {home!r}")
    return Manifest(names, weights, aliases, Report.from_json(header["report"]), version)


def _weight(data: Any, where: str) -> Weight:
    claims.members(data, where, ("network", "shape", "method"), ("roles",))
    shape = tuple(
        claims.whole(n, f"the shape of {where}", 1) for n in claims.items(data["shape"], f"the shape of {where}")
    )
    try:
        network = Network.from_dict(data["network"])
        for level in network.levels:
            if level.feed and level.feed.activation not in ACTIVATIONS:
                choices = ", ".join(ACTIVATIONS)
                raise PatternError(f"activation {level.feed.activation!r} is unknown; there are {choices}")
        if not network.holds(shape):
            raise PatternError(
                f"{network.pattern!r} rebuilds {network.shape}: it cannot hold a weight of shape {shape}"
            )
    except PatternError as error:
        raise CheckpointError(f"{where}: {error}") from error
    return Weight(
        network, shape, claims.text(data["method"], f"the method of {where}"), _roles(data, network, shape, where)
    )


def _roles(data: Mapping[str, Any], network: Network, shape: Shape, where: str) -> AxisRoles | None:
    """The roles of the axes of a weight, if the file has them."""
    if "roles" not in data:
        return None
    try:
        roles = AxisRoles(claims.text(data["roles"], f"the roles of {where}"))
        fits = roles.unstored(network, shape) is not None
    except (WeightError, PatternError) as error:
        raise CheckpointError(f"{where}: {error}") from error
    if not fits:
        raise CheckpointError(f"{where}: {network.pattern!r} has no axes of the roles {roles.text!r}")
    return roles
