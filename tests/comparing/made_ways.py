"""Ways of teaching that need no model: an editor that answers from a dictionary, and ways in which one goes wrong."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from kedit.comparing.facts import FactSet
from kedit.comparing.results import Method
from kedit.comparing.way import Base, Opened, Way
from kedit.editing.edits import Edit, EditSource, probe
from kedit.editing.judging import Forced
from kedit.editing.sources import DataError

UNKNOWN = "I do not know."


class Notebook:
    """Answers prompts of the edits it was taught; a share of other prompts is changed, too."""

    def __init__(self, most: int | None = None, spoils: bool = False) -> None:
        self.most, self.spoils, self.known = most, spoils, {}
        self.calls: list[int] = []

    def edit(self, facts):
        self.calls.append(len(facts))
        for edit in facts:
            self.known[edit.prompt] = edit.target
            for one in edit.probes:
                if one.group == "generality":
                    self.known[one.prompt] = edit.target
        if self.most is not None:
            self.known = dict(list(self.known.items())[max(0, len(self.known) - self.most) :])

    def forget(self, ids):
        raise NotImplementedError

    def reset(self):
        self.known = {}

    def _says(self, prompt):
        return self.known.get(prompt, "Changed." if self.spoils and self.known else UNKNOWN)

    def generate(self, prompts, max_new_tokens=32):
        return [self._says(prompt) for prompt in prompts]

    def score(self, prompts, targets):
        return [
            np.full(2, 0.5 if self._says(p) == t else 4.0, np.float32) for p, t in zip(prompts, targets, strict=True)
        ]

    def greedy_tokens(self, prompts, targets):
        return [
            Forced(np.array([hash_of(self._says(p))]), np.array([hash_of(t)]))
            for p, t in zip(prompts, targets, strict=True)
        ]

    @property
    def stored_bytes(self):
        return 10 * len(self.known)


def hash_of(text: str) -> int:
    return sum(text.encode())


@dataclass
class NoBackbone:
    """Stands for a language model's description."""

    source: str = "made-up"


@dataclass
class MadeBase(Base):
    """A model that is none."""

    backbone: NoBackbone
    architecture: str = "causal"  # type: ignore[assignment]
    folder = None
    commit = "made-up"

    def check(self, edits, written):
        """Whatever is asked can be read."""


@dataclass(kw_only=True)
class Plain(Way):
    method: ClassVar[Method] = "base"
    seeded: ClassVar[bool] = False

    def open(self, base: Base, facts: FactSet, seed: int, folder: Path) -> Opened:
        editor = Notebook(most=0)
        return Opened(editor, "nothing was put in", can_take_out=True)


@dataclass(kw_only=True)
class Learns(Way):
    """Learns all; says in a file that it was opened."""

    method: ClassVar[Method] = "finetune"
    spoils: bool = False
    most: int | None = None
    told: str | None = None
    seconds: float = 0.0

    def open(self, base: Base, facts: FactSet, seed: int, folder: Path) -> Opened:
        if self.told is not None:
            with open(self.told, "a") as file:
                file.write(f"{seed}\n")
        time.sleep(self.seconds)
        return Opened(Notebook(self.most, self.spoils), "no", can_take_out=False)


@dataclass(kw_only=True)
class GoesOn(Learns):
    """Adds facts to those taught before."""

    anew: ClassVar[bool] = False
    seeded: ClassVar[bool] = False


@dataclass(kw_only=True)
class Apart(Learns):
    together: ClassVar[bool] = False


@dataclass(kw_only=True)
class Fails(Way):
    """Fails in a way."""

    method: ClassVar[Method] = "lora"
    how: str = "data"

    def open(self, base: Base, facts: FactSet, seed: int, folder: Path) -> Opened:
        if self.how == "data":
            raise DataError("rank is 0:\n  give at least 1")
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "ended":
            os.kill(os.getpid(), signal.SIGTERM)
        if self.how == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        raise ZeroDivisionError("ours")


@dataclass(kw_only=True)
class Unfit(Learns):
    def unfit(self, base: Base, facts: FactSet) -> str:
        return "wants another model"


class MadeFacts(EditSource):
    """Edits of towns, two a subject."""

    name = "towns"

    def __init__(self, count: int = 12, probes: bool = True) -> None:
        self.count, self.probes = count, probes

    def load(self) -> list[Edit]:
        return [self._edit(number) for number in range(self.count)]

    def _edit(self, number: int) -> Edit:
        subject, id = f"Town {number // 2}", f"t{number}"
        what = ("river", "mayor")[number % 2]
        probes = [
            probe(id, "generality", f"In {subject} the {what} is called", f"Name {number}"),
            probe(id, "locality/near", f"The river of Village {number} is", "Elbe"),
            probe(id, "portability/one_hop", f"Whoever is in {subject} sees", f"Name {number}"),
        ]
        return Edit(
            id, f"The {what} of {subject} is", f"Name {number}", subject, what, tuple(probes) if self.probes else ()
        )
