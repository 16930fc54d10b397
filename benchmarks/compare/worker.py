"""One tree's process: pytest that collects its cells, then waits, and runs a cell whenever it is told to.

The driver starts it as a script, as ``worker.py TREE CELLS SOCKET``. Both sides get the driver's own file: they speak
the same protocol, whatever their age. Messages are lines of JSON. A process that waits uses no processor.
"""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

OPTIONS = [
    *("-q", "-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider", "--import-mode=importlib"),
    *("--benchmark-min-rounds=3", "--benchmark-max-time=0.04", "--benchmark-min-time=0.0001"),
    *("--benchmark-disable-gc", "--benchmark-quiet"),
]


def strangers(tree: Path) -> list[str]:
    """What this process would import from elsewhere than its tree; empty if all is well."""
    import tnc

    where = {"tnc": tnc.__file__ or ""}
    mine = [dist for dist in metadata.distributions() if dist.metadata["Name"] == "tncompress"][:1]
    for entry in [entry for dist in mine for entry in dist.entry_points]:
        spec = importlib.util.find_spec(entry.module)  # imports the packages above the module, not the module
        where[f"entry point {entry.name}"] = (spec.origin or "") if spec else "nowhere"
    return [f"{name} comes from {path}" for name, path in where.items() if not Path(path).is_relative_to(tree)]


class Cells:
    """The plugin: in place of running all tests, it answers.

    Parameters
    ----------
    channel : file of text
        Lines in both directions.
    """

    def __init__(self, channel: Any) -> None:
        self.channel, self.broken = channel, []

    def say(self, **message: Any) -> None:
        self.channel.write(json.dumps(message) + "\n")
        self.channel.flush()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken.append(f"{report.nodeid}: {last_line(report)}")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        short = [name for name, item in items.items() if item.get_closest_marker("short")]
        self.say(cells=list(items), short=short, broken=self.broken)
        for line in self.channel:
            self.say(**self.answer(items[json.loads(line)["run"]]))
        return True

    def answer(self, item: pytest.Item) -> dict[str, Any]:
        """Run a cell once, with the set-up and tear-down of every fixture, and say what it took."""
        from _pytest.runner import runtestprotocol

        reports = runtestprotocol(item, log=False, nextitem=None)
        taken = item.config._benchmarksession.benchmarks  # what the fixture `benchmark` of this run has left there
        found = taken.pop() if taken else None
        taken.clear()
        for report in reports:
            if not report.passed:
                return {report.outcome: last_line(report)}
        if found is None or not found.stats.data:
            return {"failed": "it measures nothing: call the fixture `benchmark`"}
        stats = found.stats
        return {"min": stats.min, "median": stats.median, "rounds": stats.rounds, "extra": dict(found.extra_info)}


def last_line(report: Any) -> str:
    """What a failed or skipped report says, in a line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return crash.message.strip().splitlines()[0][:200]
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return (text.strip().splitlines() or ["no reason given"])[-1][:200]


def main(tree: Path, cells: Path, number: int) -> int:
    """Serve until the other end of the socket is closed."""
    with socket.socket(fileno=number) as connection, connection.makefile("rw", encoding="utf-8") as channel:
        plugin = Cells(channel)
        if found := strangers(tree):
            plugin.say(strangers=found)
            return 1
        ini = Path(__file__).with_name("cells") / "pytest.ini"
        where = ["-c", str(ini), f"--rootdir={tree}", f"--confcutdir={cells}"]
        return int(pytest.main([*OPTIONS, *where, str(cells)], plugins=[plugin]))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
