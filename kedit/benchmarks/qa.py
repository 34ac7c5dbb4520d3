"""Open-domain questions with short answers: NQ-open and WebQuestions. Knows the files, not how a model is asked."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from kedit.editing.problems import BadInput, each
from kedit.editing.records import existing_file, fields, read_json_lines, read_json_list, strings
from kedit.editing.sources import Question, QuestionSource


class _QuestionFile(QuestionSource):
    """A file of questions.

    Attributes:
        skipped: what the last pass left out, by reason.
    """

    def __init__(self, file: str | Path, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            remedy = "give the number of questions to read, at least 1, or null for all"
            raise BadInput("", f"limit is {limit}", remedy, "limit")
        self.file = existing_file(file, "file")
        self.limit = limit
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Question]:
        self.skipped.clear()
        return islice(self._questions(), self.limit)

    def _questions(self) -> Iterator[Question]:
        for where, question, answers in self._rows():
            answers = [answer for answer in answers if answer.strip()]
            if not question.strip():
                self.skipped["no question"] += 1
            elif not answers:
                self.skipped["no answer"] += 1
            else:
                yield Question(question, answers, source=Path(where).name)

    @abstractmethod
    def _rows(self) -> Iterator[tuple[str, str, list[str]]]:
        """Yield (place, question, answers)."""


class NaturalQuestions(_QuestionFile):
    """NQ-open: JSON lines of `{"question", "answer": [..]}`.

    Args:
        file: for example NQ-open.dev.jsonl (3,610 questions).
        limit: read only so many questions, from the start.
    """

    name = "nq_open"

    def _rows(self) -> Iterator[tuple[str, str, list[str]]]:
        def read(record: Any, where: str) -> tuple[str, str, list[str]]:
            question, answers = fields(record, where, question=str, answer=list)
            return where, question, strings(answers, where, "answer")

        return each(read_json_lines(self.file), read)


class WebQuestions(_QuestionFile):
    """WebQuestions: one JSON list of `{"qId", "qText", "answers": [..]}`.

    Args:
        file: for example test.json (2,032 questions).
        limit: read only so many questions, from the start.
    """

    name = "webquestions"

    def _rows(self) -> Iterator[tuple[str, str, list[str]]]:
        def read(record: Any, where: str) -> tuple[str, str, list[str]]:
            question, answers = fields(record, where, qText=str, answers=list)
            return where, question, strings(answers, where, "answers")

        return each(read_json_list(self.file), read)
