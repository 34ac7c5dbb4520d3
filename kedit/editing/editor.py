"""What a model in use can be asked, and what can be done to it. Knows no method and no Trainer."""

from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

Taught = TypeVar("Taught", contravariant=True)
"""What is taught: a `Fact`, or another method's kind of edit; each has an id."""


@runtime_checkable
class Answerer(Protocol):
    """A language model that can be asked."""

    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[np.ndarray]:
        """Negative log-likelihoods of each target's tokens behind its prompt, in nats: float32 [its tokens]."""

    def generate(self, prompts: Sequence[str], max_new_tokens: int = 32) -> list[str]:
        """What the model writes behind each prompt, the prompt itself left out."""


@runtime_checkable
class Editor(Answerer, Protocol[Taught]):
    """An answerer that can be taught, and can be made to forget that again.

    Whatever fails, or is interrupted, leaves the model as it was.
    """

    def edit(self, facts: Sequence[Taught]) -> object:
        """Teach the model, so that an answer needs nothing more made; what comes back tells how it went."""

    def forget(self, ids: Sequence[str]) -> object:
        """Take out again what was taught under these ids."""

    def reset(self) -> None:
        """Take everything out: the initial model, bit for bit."""
