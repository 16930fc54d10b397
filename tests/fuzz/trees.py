"""Changes to values of JSON: hostile values, lost and doubled members, other names."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np

HOSTILE: list[Any] = [
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        3,
        7,
        0.5,
        2.0,
        -3,
        float("nan"),
        float("inf"),
        1e308,
        2**31,
        2**63,
        2**64,
        10**30,
    ),
    *(
        "",
        "x",
        "a",
        "\x1b[31m",
        "\ud800",
        "\0",
        "relu",
        "tanh",
        "swish",
        "F32",
        "BF16",
        "I8",
        "__metadata__",
        "-> ",
        "*",
    ),
    *([], {}, [[]], [0], [1, 1], [-1], [True], ["a"], {"a": 1}, {"": None}, [None] * 70, "y" * 70_000, [1] * 70),
    {"network": {"pattern": "a -> a", "sizes": {"a": 2}}, "activation": "relu"},
]


def deep(rng: np.random.Generator) -> Any:
    """Lists or objects, one in another."""
    found: Any = 1
    for _ in range(int(rng.choice([5, 50, 300]))):
        found = [found] if rng.random() < 0.5 else {"feed": found}
    return found


def spots(tree: Any) -> list[tuple[Any, Any]]:
    """Every place in a tree that is not too deep down: what holds it, and where."""
    found: list[tuple[Any, Any]] = []
    level = [tree]
    for _ in range(12):
        keys = [(holder, list(holder) if isinstance(holder, dict) else range(len(holder))) for holder in level]
        found += [(holder, key) for holder, inside in keys for key in inside]
        level = [holder[key] for holder, inside in keys for key in inside if isinstance(holder[key], dict | list)]
    return found


def changed(tree: Any, rng: np.random.Generator, times: int = 1) -> Any:
    """A copy of a tree with a few changes."""
    tree = json.loads(json.dumps(tree))
    for _ in range(times):
        places = spots(tree) if isinstance(tree, dict | list) else []
        if not places:
            return HOSTILE[rng.integers(len(HOSTILE))]
        holder, key = places[rng.integers(len(places))]
        CHANGES[rng.integers(len(CHANGES))](holder, key, places, rng)
    return tree


def replace(holder: Any, key: Any, places: Any, rng: np.random.Generator) -> None:
    holder[key] = copy.deepcopy(HOSTILE[rng.integers(len(HOSTILE))])


def sink(holder: Any, key: Any, places: Any, rng: np.random.Generator) -> None:
    holder[key] = deep(rng)


def lose(holder: Any, key: Any, places: Any, rng: np.random.Generator) -> None:
    del holder[key]


def double(holder: Any, key: Any, places: Any, rng: np.random.Generator) -> None:
    if isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        holder[f"{key}{rng.integers(3)}"] = copy.deepcopy(holder[key])


def rename(holder: Any, key: Any, places: Any, rng: np.random.Generator) -> None:
    if isinstance(holder, dict):
        _, there = places[rng.integers(len(places))]
        holder[str(there) if rng.random() < 0.5 else f"{key}'"] = holder.pop(key)


def swap(holder: Any, key: Any, places: Any, rng: np.random.Generator) -> None:
    other, there = places[rng.integers(len(places))]
    holder[key], other[there] = copy.deepcopy(other[there]), copy.deepcopy(holder[key])


def count(holder: Any, key: Any, places: Any, rng: np.random.Generator) -> None:
    value = holder[key]
    if isinstance(value, int):
        holder[key] = [value + 1, value - 1, 2 * value, -value, float(value), str(value)][rng.integers(6)]
    elif isinstance(value, str):
        holder[key] = spoilt(value, rng)
    elif isinstance(value, list):
        rng.shuffle(value)


def spoilt(text: str, rng: np.random.Generator) -> str:
    """Text with a few words or letters lost, doubled, or changed."""
    letters = list(text) if rng.random() < 0.5 else text.split(" ")
    for _ in range(int(rng.integers(1, 4))):
        if not letters:
            break
        k = int(rng.integers(len(letters)))
        match rng.integers(4):
            case 0:
                del letters[k]
            case 1:
                letters.insert(k, letters[rng.integers(len(letters))])
            case 2:
                letters[k] = rng.choice(list("ab(),->* 01r\x00é\u202e")) + ""
            case _:
                letters[k], letters[-1] = letters[-1], letters[k]
    return ("" if len(letters) and all(len(c) == 1 for c in letters) else " ").join(map(str, letters))


CHANGES = [replace, replace, sink, lose, double, rename, swap, count, count, count]
