"""Layers of any kind, factorized in any way, answer what dense ones do."""

from __future__ import annotations

import numpy as np
import pytest

import tnc
from tests.fuzz.test_mutants import SCALE

torch = pytest.importorskip("torch")

from tests.fuzz import layers  # noqa: E402 - after the check that torch is here
from tests.fuzz.drawn import KINDS  # noqa: E402
from tnc.nn.runtime.fingerprint import Fingerprint  # noqa: E402
from tnc.nn.surgery.parameters import factorizations  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning", "ignore:.*non-leaf:UserWarning")


@pytest.mark.parametrize("kind", KINDS)
def test_any_layer(kind):
    found, bad = layers.run(kind, 0, 4 * SCALE)
    assert bad == [] and found["equal"] > 0


def test_what_is_wrong_is_seen(monkeypatch):
    """A kept weight that is not looked at again, and gradients that are lost."""
    drawn = KINDS["Linear"](np.random.default_rng(0), torch.float32)
    model = tnc.nn.tensorize(drawn.module, "svd", 2, execution="dense", clip=False)
    case = layers.Case(model, drawn, "no_grad", 5)
    assert layers.compared(case) is None
    monkeypatch.setattr(Fingerprint, "holds", lambda *_: True)
    next(iter(model.tnc_weight)).data.mul_(1.5)
    assert "outputs" in layers.compared(case)
    monkeypatch.undo()
    case, made = case._replace(mode="training"), layers.answers
    assert layers.compared(case) is None

    def lost(module, case):
        outputs, slopes = made(module, case)
        return outputs, {} if any(factorizations(module)) else slopes

    monkeypatch.setattr(layers, "answers", lost)
    assert "gradient of" in layers.compared(case)
