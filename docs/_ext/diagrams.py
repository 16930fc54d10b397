"""A directive that draws the network of a decomposition when the page is built, with its pattern and its counts."""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import tnc

LOGGER = logging.getLogger(__name__)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.replace(",", " ").split()))


class Diagram(SphinxDirective):
    """``Network.draw`` of a decomposition for a weight of ``:shape:`` at ``:rank:``."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar[dict[str, Any]] = {
        "shape": directives.unchanged_required,
        "rank": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        shape, rank = _numbers(self.options["shape"]), _numbers(self.options["rank"])
        try:
            network = tnc.decompositions.parse(self.arguments[0]).network(shape, rank[0] if len(rank) == 1 else rank)
        except tnc.errors.TncError as error:
            LOGGER.warning("no diagram of %s: %s", self.arguments[0], error, location=(self.env.docname, self.lineno))
            return []
        picture = nodes.raw("", f'<div class="diagram">{network.draw()}</div>', format="html")
        weight = " × ".join(map(str, shape))
        words = f"`{self.arguments[0]}` for a weight {weight} at rank {' '.join(map(str, rank))}: `{network.pattern}`, "
        words += f"{network.n_params:,} parameters instead of {prod(shape):,}."
        figure = nodes.figure("", picture, classes=["network"])
        caption, parts = nodes.caption(), words.split("`")
        for k, part in enumerate(parts):
            caption += nodes.literal(part, part) if k % 2 else nodes.Text(part)
        figure += caption
        return [figure]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("diagram", Diagram)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
