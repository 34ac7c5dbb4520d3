"""What editing does to a model as a whole: its perplexity on plain text. Knows no method."""

from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np

from kedit.editing.editor import Answerer
from kedit.editing.records import existing_file
from kedit.editing.sources import DataError


class TextPerplexity:
    """Perplexity of a text file's paragraphs behind their first words: exp(mean NLL of all scored tokens).

    What is asked is what a user asks: an answerer's `score`, gate and memory included. Not to be compared with
    figures of a sliding window over a whole file.

    Args:
        file: plain text, such as wikitext's test split; a line is a paragraph, and "= TITLE =" is none.
        paragraphs: how many, from the start.
        context: words of each that are given.
        words: most words of each that are scored.
    """

    def __init__(self, file: str | Path, paragraphs: int = 200, context: int = 16, words: int = 128) -> None:
        path = existing_file(file, "file")
        with path.open(encoding="utf-8") as lines:
            self._take((line for line in lines if not line.strip().startswith("= ")), paragraphs, context, words)
        if not self.prompts:
            raise DataError(f"{path}: no paragraph of {2 * context} words or more: check 'file'")

    @classmethod
    def of(cls, texts: Iterable[str], paragraphs: int = 200, context: int = 4, words: int = 128) -> Self:
        """The same of given texts; those of less than `2 * context` words are passed over."""
        made = cls.__new__(cls)
        made._take(texts, paragraphs, context, words)
        if not made.prompts:
            raise DataError(f"no text of {2 * context} words or more to measure perplexity on")
        return made

    def _take(self, texts: Iterable[str], paragraphs: int, context: int, words: int) -> None:
        self.prompts: list[str] = []
        self.targets: list[str] = []
        for text in texts:
            given = text.split()
            if len(given) >= 2 * context:
                self.prompts.append(" ".join(given[:context]))
                self.targets.append(" ".join(given[context : context + words]))
            if len(self.prompts) == paragraphs:
                break

    def __call__(self, model: Answerer) -> float:
        """Ask a model, edited or not."""
        nll = np.concatenate(model.score(self.prompts, self.targets))
        return float(np.exp(nll.mean(dtype=np.float64)))
