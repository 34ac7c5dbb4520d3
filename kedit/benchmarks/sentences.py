"""Sentences of plain text, as queries that no edit concerns. Knows the file, not what is asked about them."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from kedit.editing.problems import BadInput
from kedit.editing.records import existing_file, not_utf8
from kedit.editing.sources import Question, QuestionSource

_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
# wikitext's marks: "well @-@ known", spaces before commas, inside brackets and quotes
_TIDY = ((r" @(.)@ ", r"\1"), (r" (?=[,.;:!?)\]%]|'s\b|n't\b)", ""), (r"(?<=[(\[]) ", ""), (r'" ([^"]*) "', r'"\1"'))


class Sentences(QuestionSource):
    """Sentences of a text file as questions without answers, such as wikitext's: its marks are undone.

    Attributes:
        skipped: what the last pass left out, by reason.

    Args:
        file: plain text, a line for each paragraph; lines "= TITLE =" are left out.
        limit: keep only so many: the first, or with a seed any.
        seed: shuffle the sentences; null leaves the file's order.
        words: fewest words of a sentence.
    """

    name = "sentences"

    def __init__(self, file: str | Path, limit: int | None = None, seed: int | None = None, words: int = 6) -> None:
        if limit is not None and limit < 1:
            remedy = "give the number of sentences to keep, at least 1, or null for all"
            raise BadInput("", f"limit is {limit}", remedy, "limit")
        self.file = existing_file(file, "file")
        self.limit, self.seed, self.words = limit, seed, words
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Question]:
        self.skipped.clear()
        sentences = list(self._sentences())
        if self.seed is not None:
            Random(self.seed).shuffle(sentences)
        return iter(sentences[: self.limit])

    def _sentences(self) -> Iterator[Question]:
        with self.file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    paragraph = line.decode("utf-8-sig").strip()
                except UnicodeDecodeError as error:
                    raise not_utf8(self.file, line, number, error) from error
                if not paragraph or paragraph.startswith("= "):
                    continue
                for mark, plain in _TIDY:
                    paragraph = re.sub(mark, plain, paragraph)
                for sentence in _END.split(paragraph):
                    if "<unk>" in sentence:
                        self.skipped["holds an unknown word"] += 1
                    elif len(sentence.split()) < self.words:
                        self.skipped["too short"] += 1
                    else:
                        yield Question(sentence, [], f"{self.file.name}:{number}")
