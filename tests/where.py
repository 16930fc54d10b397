"""Where the tests of a file are: under its own name in the mirrored folder, or where this table says, and why.

`tnc/contract/cost.py` has `tests/contract/test_cost.py`, a package `tnc/fit` has `tests/fit/test_fit.py`.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = {ROOT / "tnc": ROOT / "tests", ROOT / "plugins" / "tnc_plugins": ROOT / "tests" / "plugins"}

ELSEWHERE: dict[str, tuple[str, str]] = {
    # Command line: one command is one road through several files.
    "tnc/cli/demo.py": ("commands run as a user runs them", "cli/test_cli.py"),
    "tnc/cli/plugins.py": ("commands run as a user runs them", "cli/test_cli.py"),
    "tnc/cli/weights.py": ("commands run as a user runs them", "cli/test_cli.py cli/test_calibration.py"),
    # Backends: every test runs on each of them.
    "tnc/backends/cupy.py": ("one set of tests for all places", "backends/test_backends.py"),
    "tnc/backends/numpy.py": ("one set of tests for all places", "backends/test_backends.py"),
    "tnc/backends/torch.py": ("one set of tests for all places", "backends/test_backends.py test_settings.py"),
    # Plans: a layout, a path or a recipe is right when what is computed with it is.
    "tnc/contract/lookup.py": ("one of the strategies", "contract/test_strategies.py nn/layers/test_embedding.py"),
    "tnc/contract/order.py": ("right when products are", "contract/test_contract.py contract/test_convolution.py"),
    # The demonstration is one run.
    "tnc/demo/lenet.py": ("steps of one run", "demo/test_run.py"),
    "tnc/demo/scores.py": ("results of one run", "demo/test_run.py"),
    # A diagram is looked at as a whole.
    "tnc/draw/layout.py": ("drawings are checked whole", "draw/test_draw.py"),
    "tnc/draw/plane.py": ("drawings are checked whole", "draw/test_draw.py"),
    "tnc/draw/shapes.py": ("drawings are checked whole", "draw/test_draw.py"),
    "tnc/draw/sketch.py": ("drawings are checked whole", "draw/test_draw.py"),
    "tnc/draw/stack.py": ("drawings are checked whole", "draw/test_draw.py"),
    # Fits.
    "tnc/fit/alternating.py": ("fits are judged by their error", "fit/test_fit.py"),
    "tnc/fit/core_problem.py": ("one step of least squares", "fit/test_least_squares.py"),
    "tnc/fit/metric_sweep.py": ("sweeps in a metric", "fit/test_metric.py fit/test_calibrated.py"),
    "tnc/fit/starts.py": ("fits are judged by their error", "fit/test_fit.py"),
    "tnc/fit/trees.py": ("fits are judged by their error", "fit/test_fit.py"),
    "tnc/fit/unfolding.py": ("fits are judged by their error", "fit/test_fit.py"),
    # Ranks.
    "tnc/ranks/base.py": ("seen in every policy", "ranks/test_policies.py ranks/test_budget.py"),
    "tnc/ranks/short.py": ("short forms of policies", "ranks/test_policies.py"),
    # Layers.
    "tnc/nn/layers/base.py": ("every layer is one", "nn/layers/test_init.py nn/layers/test_layers.py"),
    "tnc/nn/layers/cores.py": ("cores are seen through layers", "nn/layers/test_stale.py nn/surgery/test_freezing.py"),
    "tnc/nn/layers/folders.py": ("a refusal to other tools", "nn/test_combinations.py"),
    "tnc/nn/layers/holder.py": ("every module is one", "nn/layers/test_modules.py nn/layers/test_names.py"),
    "tnc/nn/layers/recurrent.py": ("beside attention", "nn/layers/test_sequence.py"),
    # Calibration: sums are right when the moments of every kind of layer are.
    "tnc/nn/calibration/operations.py": ("seen in moments", "nn/calibration/test_gathering.py"),
    "tnc/nn/calibration/patches.py": ("seen in moments", "nn/calibration/test_gathering.py"),
    "tnc/nn/calibration/tallies.py": ("seen in moments", "nn/calibration/test_gathering.py"),
    "tnc/nn/calibration/tally.py": ("seen in moments", "nn/calibration/test_gathering.py"),
    "tnc/nn/calibration/weights.py": ("seen in moments", "nn/calibration/test_gathering.py"),
    # Calibrated compression is judged by the outputs of whole models.
    "tnc/nn/calibration/metrics.py": ("seen in outputs", "nn/calibration/test_compression.py"),
    "tnc/nn/calibration/refit.py": ("seen in outputs", "nn/calibration/test_compression.py"),
    "tnc/nn/calibration/values.py": ("seen in outputs", "nn/calibration/test_compression.py"),
    "tnc/nn/calibration/versions.py": ("seen in outputs", "nn/calibration/test_compression.py"),
    # Running.
    "tnc/nn/runtime/convolve.py": ("against torch's kernels", "nn/layers/test_convolution.py"),
    "tnc/nn/runtime/formats.py": ("formats of kernels", "nn/layers/test_layers.py nn/layers/test_convolution.py"),
    "tnc/nn/runtime/lookup.py": ("against torch's tables", "nn/layers/test_embedding.py contract/test_strategies.py"),
    # Changing models: one change passes through several files, and all of it or nothing happens.
    "tnc/nn/surgery/adjust.py": ("part of every change", "nn/layers/test_sequence.py"),
    "tnc/nn/surgery/agreement.py": ("part of loading", "nn/surgery/test_loading.py nn/surgery/test_saving.py"),
    "tnc/nn/surgery/attach.py": ("part of every change", "nn/surgery/test_failures.py nn/surgery/test_ties.py"),
    "tnc/nn/surgery/encoder.py": ("beside attention", "nn/layers/test_sequence.py"),
    "tnc/nn/surgery/inventory.py": ("part of saving", "nn/surgery/test_saving.py nn/surgery/test_ties.py"),
    "tnc/nn/surgery/matching.py": ("part of every change", "nn/surgery/test_dry_run.py nn/surgery/test_failures.py"),
    "tnc/nn/surgery/meta.py": ("part of loading", "nn/surgery/test_loading.py nn/surgery/test_pretrained.py"),
    "tnc/nn/surgery/parameters.py": ("part of every change", "nn/surgery/test_ties.py nn/surgery/test_loading.py"),
    "tnc/nn/surgery/refusals.py": ("words of every refusal", "nn/layers/test_modules.py nn/surgery/test_failures.py"),
    "tnc/nn/surgery/replace.py": ("seen in every layer", "nn/surgery/test_failures.py nn/surgery/test_dry_run.py"),
    # Training.
    "tnc/nn/training/choices.py": (
        "part of healing",
        "nn/training/test_heal.py nn/training/test_normalization.py",
    ),
    "tnc/nn/training/descent.py": ("steps of refinement", "nn/training/test_refine.py"),
    "tnc/nn/training/first.py": ("read before healing", "nn/training/test_normalization.py"),
    "tnc/nn/training/heal_rate.py": ("part of healing", "nn/training/test_heal.py"),
    "tnc/nn/training/hidden.py": ("part of refinement", "nn/training/test_refine.py"),
    "tnc/nn/training/lessons.py": ("part of refinement", "nn/training/test_refine.py"),
    "tnc/nn/training/objective.py": ("part of healing", "nn/training/test_heal.py"),
    "tnc/nn/training/parameter_groups.py": (
        "steps of healing",
        "nn/training/test_heal_gauge.py nn/training/test_resume.py",
    ),
    "tnc/nn/training/progress.py": ("seen on a terminal", "nn/training/test_heal.py"),
    # Calls and what models answer are seen where they are judged and trained.
    "tnc/nn/data/batches.py": ("read from loaders", "nn/training/test_batches.py nn/data/test_stacked.py"),
    "tnc/nn/data/calls.py": ("joined and judged", "nn/data/test_stacked.py nn/calibration/test_judge.py"),
    "tnc/nn/data/answers.py": ("answers to batches", "nn/training/test_batches.py"),
    "tnc/nn/data/evaluation.py": ("modes of judged models", "nn/calibration/test_judge.py"),
    "tnc/nn/data/outputs.py": ("outputs that are judged", "nn/calibration/test_judge.py"),
    # The rest.
    "tnc/claims.py": ("every claim of a header, refused by name", "test_manifest.py test_storage.py"),
    "tnc/patterns.py": ("patterns are parts of networks", "test_network.py"),
    "tnc/errors.py": ("words as they reach the terminal", "cli/test_terminal.py test_registry.py"),
    "tnc/__init__.py": ("the door", "test_house.py test_settings.py"),
    # Plugins: parts of one decomposition each.
    "plugins/tnc_plugins/brickwall.py": ("a part of ADTN", "plugins/test_adtn.py"),
    "plugins/tnc_plugins/gates.py": ("a part of ADTN", "plugins/test_adtn.py"),
    "plugins/tnc_plugins/digits.py": ("a part of ADTN", "plugins/test_adtn.py"),
    "plugins/tnc_plugins/passthrough.py": ("a part of the semi-tensor formats", "plugins/test_semitensor.py"),
}
"""By source: why its tests are not under its name, and where they are (files under `tests`)."""


def sources() -> list[Path]:
    """Files that hold functions or classes; a file of names only has nothing to test."""
    found = sorted(path for part in PARTS for path in part.rglob("*.py"))
    return [path for path in found if any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in _walk(path))]


def _walk(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def mirrored(source: Path) -> Path:
    """The test file that bears a source's name."""
    (part,) = (part for part in PARTS if source.is_relative_to(part))
    inner = source.relative_to(part)
    if inner.name == "__init__.py":
        return PARTS[part] / inner.parent / f"test_{(part / inner.parent).name}.py"
    return PARTS[part] / inner.parent / f"test_{inner.name}"


def files_for(source: Path) -> list[Path]:
    """All test files that belong to a source: its own first."""
    _, elsewhere = ELSEWHERE.get(source.relative_to(ROOT).as_posix(), ("", ""))
    own = mirrored(source)
    return [own] * own.is_file() + [ROOT / "tests" / name for name in elsewhere.split()]
