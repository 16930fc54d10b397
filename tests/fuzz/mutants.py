"""Mutated checkpoints: damage must be noticed, and what a stranger writes must be refused or usable."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from io import BytesIO, StringIO
from math import prod
from typing import Any

import numpy as np

from tests.fuzz.originals import FIRST, content, joined, loaded, originals, sealed, split
from tests.fuzz.trees import HOSTILE, changed, spoilt
from tnc import Checkpoint, Factorization
from tnc.cli.terminal import show
from tnc.cli.weights import _row, _table
from tnc.errors import TncError

Random = np.random.Generator
SLOW = 5.0
"""Seconds that no file of a few kB may take."""

# ------------------------------------------------------------------- damage


def bit(raw: bytes, rng: Random) -> bytes:
    spoilt = bytearray(raw)
    spoilt[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
    return bytes(spoilt)


def bits(raw: bytes, rng: Random) -> bytes:
    for _ in range(int(rng.integers(2, 20))):
        raw = bit(raw, rng)
    return raw


def block(raw: bytes, rng: Random) -> bytes:
    """Overwritten by noise, zeros, or a part of itself."""
    size, at = int(rng.integers(1, 64)), int(rng.integers(len(raw)))
    start = int(rng.integers(len(raw)))
    new = [rng.bytes(size), bytes(size), raw[start : start + size]][rng.integers(3)]
    return (raw[:at] + new + raw[at + len(new) :])[: len(raw)]


def cut(raw: bytes, rng: Random) -> bytes:
    return raw[: rng.integers(len(raw))]


def shifted(raw: bytes, rng: Random) -> bytes:
    """A few bytes more or less, at the end or in the middle."""
    at = int(rng.choice([len(raw), rng.integers(len(raw))]))
    few = int(rng.integers(1, 9))
    return raw[:at] + rng.bytes(few) + raw[at:] if rng.random() < 0.5 else raw[:at] + raw[at + few :]


def _entries(layout: dict[str, Any]) -> list[str]:
    return [name for name in layout if name != "__metadata__"]


def swapped(raw: bytes, rng: Random) -> bytes:
    """Two tensors of one size change places, or names, or all but their places."""
    layout, data = split(raw)
    names = _entries(layout)
    if len(names) < 2:
        return bit(raw, rng)
    a, b = (str(name) for name in rng.choice(names, 2, replace=False))
    match rng.integers(3):
        case 0:
            layout[a], layout[b] = layout[b], layout[a]
        case 1:
            layout[a]["data_offsets"], layout[b]["data_offsets"] = layout[b]["data_offsets"], layout[a]["data_offsets"]
        case _:
            layout[a]["dtype"], layout[b]["dtype"] = layout[b]["dtype"], layout[a]["dtype"]
            layout[a]["shape"], layout[b]["shape"] = layout[b]["shape"], layout[a]["shape"]
    return joined(layout, data)


SAME_SIZE = [["F64", "I64", "U64", "C64"], ["F32", "I32", "U32"], ["F16", "BF16", "I16", "U16"], ["I8", "U8", "BOOL"]]


def retyped(raw: bytes, rng: Random) -> bytes:
    """A tensor of another dtype or shape, in as many bytes."""
    layout, data = split(raw)
    if not (names := _entries(layout)):
        return bit(raw, rng)
    entry = layout[str(rng.choice(names))]
    if rng.random() < 0.5:
        entry["dtype"] = str(rng.choice(next(group for group in SAME_SIZE if entry["dtype"] in group)))
    else:
        entry["shape"] = [entry["shape"][::-1], [prod(entry["shape"])], [*entry["shape"], 1]][rng.integers(3)]
    return joined(layout, data)


def renamed(raw: bytes, rng: Random) -> bytes:
    layout, data = split(raw)
    name, other = (str(name) for name in rng.choice(list(layout), 2))
    layout[[f"{name}x", spoilt(name, rng), other][rng.integers(3)]] = layout.pop(name)
    return joined(layout, data)


def reworded(raw: bytes, rng: Random) -> bytes:
    """The header or the list of digests changed, and nothing else."""
    layout, data = split(raw)
    key = str(rng.choice(["tnc", "tnc", "tnc.digests"]))
    words = layout["__metadata__"]
    if key in words:
        words[key] = json.dumps(_words(json.loads(words[key]), rng))
    return joined(layout, data)


def stripped(raw: bytes, rng: Random) -> bytes:
    """Without digests, or without those of one tensor; the tensors spoilt or not."""
    layout, data = split(raw)
    layout["__metadata__"].pop("tnc.digests", None)
    return joined(layout, bit(data, rng) if data and rng.random() < 0.5 else data)


DAMAGE: dict[str, Callable[[bytes, Random], bytes]] = {
    "one bit": bit,
    "several bits": bits,
    "a block overwritten": block,
    "truncated": cut,
    "bytes more or less": shifted,
    "tensors swapped": swapped,
    "dtype or shape changed": retyped,
    "tensor renamed": renamed,
    "header or digests edited": reworded,
    "digests taken out": stripped,
}

# ----------------------------------------------------- what a stranger writes


def _words(header: Any, rng: Random) -> Any:
    """A header changed anywhere, its report and its networks above all."""
    where = rng.integers(4)
    if where == 0 and isinstance(header.get("report"), str):
        return {**header, "report": json.dumps(changed(json.loads(header["report"]), rng, int(rng.integers(1, 3))))}
    weights = header.get("weights")
    if where <= 2 and weights:
        name = str(rng.choice(list(weights)))
        return {**header, "weights": {**weights, name: changed(weights[name], rng, int(rng.integers(1, 4)))}}
    return changed(header, rng, int(rng.integers(1, 4)))


def header(raw: bytes, rng: Random) -> bytes:
    layout, data = split(raw)
    words = json.dumps(_words(json.loads(layout["__metadata__"]["tnc"]), rng))
    if rng.random() < 0.1:
        words = spoilt(words, rng)
    layout["__metadata__"]["tnc"] = words
    return sealed(layout, data)


def pattern(raw: bytes, rng: Random) -> bytes:
    """Another pattern, other sizes, more feeds."""
    layout, data = split(raw)
    words = json.loads(layout["__metadata__"]["tnc"])
    if not words["weights"]:
        return header(raw, rng)
    weight = words["weights"][str(rng.choice(list(words["weights"])))]
    network = weight["network"]
    match rng.integers(4):
        case 0:
            network["pattern"] = spoilt(network["pattern"], rng)
        case 1:
            name = str(rng.choice(list(network["sizes"])))
            network["sizes"][name] = [1, 2, 3, 2**20, 2**40, 2**62, HOSTILE[rng.integers(len(HOSTILE))]][
                rng.integers(7)
            ]
        case 2:
            for _ in range(int(rng.choice([1, 2, 70]))):
                network = {**network, "feed": {"network": network, "activation": "relu"}}
            weight["network"] = network
        case _:
            left, _, right = network["pattern"].partition("->")
            network["pattern"] = f"{', '.join([left] * int(rng.choice([2, 3, 80])))} -> {right}"
    layout["__metadata__"]["tnc"] = json.dumps(words)
    return sealed(layout, data)


def places(raw: bytes, rng: Random) -> bytes:
    layout, data = split(raw)
    words = layout.pop("__metadata__")
    layout = changed(layout, rng, int(rng.integers(1, 3)))
    return sealed({"__metadata__": words, **layout}, data) if isinstance(layout, dict) else joined(layout, data)


def types(raw: bytes, rng: Random) -> bytes:
    """Tensors of other dtypes and shapes with digests that are right."""
    return sealed(*split(retyped(raw, rng))) if _entries(split(raw)[0]) else header(raw, rng)


def metadata(raw: bytes, rng: Random) -> bytes:
    layout, data = split(raw)
    layout["__metadata__"] = changed(layout["__metadata__"], rng, int(rng.integers(1, 3)))
    return (
        sealed(layout, data)
        if isinstance(layout["__metadata__"], dict) and rng.random() < 0.5
        else joined(layout, data)
    )


def older(raw: bytes, rng: Random) -> bytes:
    """A file of the first format, which has no digests: what is damaged in it may load, but raises nothing raw."""
    return list(DAMAGE.values())[rng.integers(len(DAMAGE))](FIRST, rng)


STRANGERS: dict[str, Callable[[bytes, Random], bytes]] = {
    "header values": header,
    "patterns, sizes, feeds": pattern,
    "layout values": places,
    "dtypes and shapes": types,
    "metadata": metadata,
    "files of the first format, damaged": older,
}

# -------------------------------------------------------------------- verdicts


def use(checkpoint: Checkpoint) -> None:
    """All that can be done with a file that was accepted, short of what it says is large."""
    with np.errstate(all="ignore"):
        for name in checkpoint:
            entry = checkpoint[name]
            if isinstance(entry, Factorization) and prod(entry.shape) <= 1 << 16:
                assert entry.dense().shape == entry.shape
                if entry.shape and entry.shape[1:]:
                    entry.apply(np.ones((2, prod(entry.shape[1:])), entry.cores[0].dtype))
    rows = [_row(checkpoint, name) for name in checkpoint]
    with redirect_stdout(StringIO()) as said:
        show(_table(rows), checkpoint.report.table())
    assert all(c.isprintable() or c == "\n" for c in said.getvalue()), "the terminal would obey it"
    json.dumps(rows)
    str(checkpoint.report), repr(checkpoint), checkpoint.n_params
    file = BytesIO()
    checkpoint.save(file)
    again = loaded(file.getvalue())
    assert repr(content(again)) == repr(content(checkpoint)), "saved, it is another"


def verdict(raw: bytes, before: Any, trusted: bool) -> str:
    """What became of a mutant; "refused" and "as it was" are well, and of what a stranger writes "usable" too.

    `trusted`: what is loaded must be what was saved.
    """
    start = time.perf_counter()
    try:
        found = loaded(raw)
        if time.perf_counter() - start > SLOW:
            return "slow"
        if repr(content(found)) == before:
            return "as it was"
        if trusted:
            return "ANOTHER NETWORK"
        use(found)
        return "usable"
    except TncError:
        return "slow" if time.perf_counter() - start > SLOW else "refused"
    except Exception as error:
        return f"RAW {type(error).__name__}: {str(error)[:100]}"


WELL = ("refused", "as it was", "usable")


def run(kind: str, seed: int, times: int) -> tuple[Counter[str], list[str]]:
    """Verdicts on so many mutants of a kind, and how to make again what is not well."""
    trusted = kind in DAMAGE
    change, found, bad = (DAMAGE | STRANGERS)[kind], Counter[str](), []
    files = originals() if trusted else [*originals(), FIRST]
    before = [repr(content(loaded(raw))) for raw in files]
    for k in range(times):
        rng = np.random.default_rng([seed, k])
        which = int(rng.integers(len(files)))
        said = verdict(change(files[which], rng), before[which], trusted)
        found[said if said in WELL else "failed"] += 1
        if said not in WELL:
            bad.append(f"{kind}, seed {seed}, number {k}: {said}")
    return found, bad
