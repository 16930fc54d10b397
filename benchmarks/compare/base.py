"""The other tree: which commit it is, its files in a folder of their own, and the entry points it declares."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

BACK = 20
"""How many commits back the base is where there is no release."""
RELEASES = ("--match", "v[0-9]*", "--match", "[0-9]*")


class NothingToCompare(Exception):
    """There is no other commit; the message says why."""


class UnknownCommit(Exception):
    """The commit that was asked for does not exist."""


@dataclass(frozen=True)
class Base:
    """A commit to compare with, and how it was found."""

    commit: str
    why: str


def git(root: Path, *words: str) -> str | None:
    """What git prints; None where git is missing or refuses."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def head(root: Path) -> str:
    """The commit of a tree.

    Raises
    ------
    NothingToCompare
        The folder is not the top of a git repository with a commit.
    """
    top = git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():  # an unpacked archive may lie in somebody's repository
        raise NothingToCompare("there is no git repository here")
    found = git(root, "rev-parse", "--verify", "HEAD")
    if found is None:
        raise NothingToCompare("the repository has no commit")
    return found


def named_base(root: Path, name: str) -> Base:
    """The commit of that name.

    Raises
    ------
    UnknownCommit
        It does not exist, or a shallow clone does not hold it.
    """
    found = git(root, "rev-parse", "--verify", "--end-of-options", f"{name}^{{commit}}")
    if found is None:
        hint = " The clone is shallow: git fetch --unshallow brings the rest." if shallow(root) else ""
        raise UnknownCommit(f"{name!r} is no commit of this repository.{hint}")
    if found == head(root):
        return Base(found, f"{name}, this very commit: what differs is uncommitted, or noise")
    return Base(found, name)


def default_base(root: Path) -> Base:
    """The last release before this commit; without releases, the first parent twenty commits back, or the first commit.

    Raises
    ------
    NothingToCompare
        No git, or no commit but this one.
    """
    here = head(root)
    # The tag of this very commit is no other commit, so the search begins at its parent.
    tag = git(root, "describe", "--tags", "--abbrev=0", *RELEASES, f"{here}^")
    if tag:
        return Base(str(git(root, "rev-parse", f"{tag}^{{commit}}")), f"{tag}, the last release")
    line = (git(root, "rev-list", "--first-parent", "-n", str(BACK + 1), here) or here).split()
    back = len(line) - 1
    if not back and shallow(root):
        raise NothingToCompare(
            "the clone is shallow and holds this commit only (git fetch --unshallow brings the rest)"
        )
    if not back:
        raise NothingToCompare("this commit is the first one")
    if back == BACK:
        return Base(line[-1], f"{BACK} commits back, as there is no release")
    kind = "the oldest of a shallow clone" if shallow(root) else "the first commit"
    return Base(line[-1], f"{kind}, {back} back")


def shallow(root: Path) -> bool:
    return git(root, "rev-parse", "--is-shallow-repository") == "true"


def check_out(root: Path, commit: str, folder: Path) -> None:
    """Write the files of a commit into a folder. Git is not told: there is nothing to clean up but the folder."""
    archive = subprocess.run(
        ["git", "-C", str(root), "archive", "--format=tar", commit], capture_output=True, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")


def write_metadata(tree: Path, folder: Path) -> None:
    """Make a ``.dist-info`` with the entry points a tree declares, so that the installed ones are not taken.

    The first distribution of a name on the path hides all others, and both trees get one: a plugin that was added,
    moved or removed between them is found where its own tree says.
    """
    source = tree / "pyproject.toml"
    if not source.is_file():
        return
    project = tomllib.loads(source.read_text(encoding="utf-8"))["project"]
    info = folder / f"{project['name']}-{project.get('version', '0')}.dist-info"
    info.mkdir(parents=True)
    about = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project.get('version', '0')}\n"
    (info / "METADATA").write_text(about, encoding="utf-8")
    groups = {"console_scripts": project.get("scripts", {}), **project.get("entry-points", {})}
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
