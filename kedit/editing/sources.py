"""Where facts and questions come from: abstract sources that `benchmarks` and `world` implement and methods use.

A method never imports an implementation: a config names it by `class_path`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


class DataError(ValueError):
    """Bad input: the message says what came, what was wanted and which option or line to change."""


@dataclass
class Candidate:
    """An entity that a mention may mean.

    Args:
        title: the entity's title (its Wikipedia article).
        description: its short description, empty where unknown.
        prior: p(entity | surface form) or any non-negative count; 0 where unknown.
    """

    title: str
    description: str = ""
    prior: float = 0.0


@dataclass
class MentionQuestion:
    """A mention in its context, with the entities it may mean.

    Args:
        text: the context.
        span: [start, end) of the mention, character offsets into `text`.
        candidates: what to choose from; may be empty where the source offers none.
        gold: title of the right entity, empty where the mention means no known entity (NIL).
        source: document and number, to name the question in a report.
        description: the right entity's short description, empty where unknown.
    """

    text: str
    span: tuple[int, int]
    candidates: list[Candidate] = field(default_factory=list)
    gold: str = ""
    source: str = ""
    description: str = ""

    @property
    def mention(self) -> str:
        return self.text[self.span[0] : self.span[1]]


@dataclass
class Question:
    """A question with every answer that counts as right."""

    question: str
    answers: list[str]
    source: str = ""


class WikiSource(ABC):
    """Writes a Wikipedia-style dump."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A short string that is the same exactly when `write` would write the same bytes."""

    @abstractmethod
    def write(self, folder: Path) -> list[Path]:
        """Write pages-articles files (.xml.bz2) into `folder` and return their paths."""


class MentionSource(ABC):
    """Mentions to be told apart, for example an entity disambiguation benchmark."""

    name: str

    @abstractmethod
    def __iter__(self) -> Iterator[MentionQuestion]: ...


class QuestionSource(ABC):
    """Questions with short answers, for example an open-domain QA benchmark."""

    name: str

    @abstractmethod
    def __iter__(self) -> Iterator[Question]: ...
