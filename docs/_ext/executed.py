"""Two directives that run what they show, so that an example in the documentation cannot rot.

``run`` executes Python in one namespace per page; ``shell`` executes commands in one scratch folder per
page. Both print what came out below the code, and code that fails fails the build.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

LOGGER = logging.getLogger(__name__)


class Executed(SphinxDirective):
    """Show the content, execute it, show its output."""

    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"hide-output": directives.flag, "fails": directives.flag}
    language: ClassVar[str]
    execute: Callable[[str, str], str]
    """The output of the code, run in a folder; each directive has its own."""

    @property
    def here(self) -> tuple[str, int]:
        return self.env.docname, self.lineno

    def run(self) -> list[nodes.Node]:
        # A page is read again when it changes, so what belongs to a page lives no longer than one reading.
        page = self.env.current_document if hasattr(self.env, "current_document") else self.env.temp_data
        if "tnc_scratch" not in page:
            page["tnc_scratch"] = tempfile.TemporaryDirectory(prefix="tnc-docs-")
            page["tnc_names"] = {"__name__": "__main__"}
        self.names = page["tnc_names"]
        code = "\n".join(self.content)
        try:
            output = self.execute(code, page["tnc_scratch"].name).rstrip()
        except Exception as error:
            # Said as a warning, so that all failures of a build are seen; `-W` or not, the build has failed.
            LOGGER.warning("this example fails: %s: %s\n\n%s\n", type(error).__name__, error, code, location=self.here)
            self.env.app.statuscode = 1
            output = "(failed)"
        shown: list[nodes.Node] = [nodes.literal_block(code, code, language=self.language)]
        if output and "hide-output" not in self.options:
            shown.append(nodes.literal_block(output, output, language="text", classes=["output"]))
        for node in shown:
            self.set_source_info(node)
        return shown


class Run(Executed):
    """Python, in the page's namespace and scratch folder, with warnings as errors."""

    language = "python"

    def execute(self, code: str, folder: str) -> str:
        out = io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), warnings.catch_warnings():
            warnings.simplefilter("error")
            exec(compile(code, self.get_source_info()[0], "exec"), self.names)
        return out.getvalue()


class Shell(Executed):
    """Shell commands, in the page's scratch folder; with ``:fails:`` they must fail."""

    language = "sh"

    def execute(self, code: str, folder: str) -> str:
        # `tnc` must be the one of the environment that builds the documentation.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        plain = {"PATH": path, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
        plain["CLONE"] = str(Path(self.env.srcdir).parent)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=folder,
            env={**os.environ, **plain},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if bool(done.returncode) != ("fails" in self.options):
            raise RuntimeError(f"exit code {done.returncode}, output:\n{done.stdout}")
        return done.stdout + (f"(exit code {done.returncode})" if done.returncode else "")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the two directives."""
    app.add_directive("run", Run)
    app.add_directive("shell", Shell)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
