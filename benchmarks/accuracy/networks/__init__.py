"""The networks of the table by name: ``SUBJECTS["resnet56"]``. Nothing is loaded before it is asked for."""

from __future__ import annotations

from benchmarks.accuracy.networks import images, language, ocr, sentences
from benchmarks.accuracy.subject import Subject

__all__ = ["SUBJECTS"]

SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for subject in (*images.SUBJECTS, sentences.MINILM, language.STORIES, language.SMOL, ocr.READER)
}
