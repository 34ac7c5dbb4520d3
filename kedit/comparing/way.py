"""A way of getting facts into a model, as a comparison sees it: what it applies to, and an editor that learns them.

Knows no method: those stand in `kedit.contestants`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.comparing.facts import FactSet
from kedit.comparing.results import Architecture, Method
from kedit.editing.edits import Edit
from kedit.editing.sources import DataError
from kedit.editing.stream import EditedModel
from kedit.lm.backbones import CAUSAL, SEQ2SEQ, Backbone, load_causal, load_config, load_seq2seq, load_tokenizer


@dataclass
class Base:
    """A language model that facts are taught to.

    Args:
        backbone: the model.
        bos: put the tokenizer's BOS before each text although it does not do so itself, as for models that were trained
            with it by kedit.
    """

    backbone: Backbone
    bos: bool = False

    @property
    def architecture(self) -> Architecture:
        """Of which kind it is; its configuration is read, and it is made if need be."""
        return "encoder-decoder" if load_config(self.backbone, (*CAUSAL, *SEQ2SEQ)).model_type in SEQ2SEQ else "causal"

    @property
    def folder(self) -> Path | None:
        """Where it lies on this disk; None for a hub model."""
        path = Path(str(self.backbone.source)).expanduser()
        return path if path.exists() else None

    @property
    def commit(self) -> str:
        """Of a hub model, by name and what the client has of it."""
        config = load_config(self.backbone, (*CAUSAL, *SEQ2SEQ))
        return f"{self.backbone.source} {getattr(config, '_commit_hash', None)}"

    def check(self, edits: Sequence[Edit], written: int) -> None:
        """Refuse facts that are longer than the model reads.

        Args:
            edits: with probes.
            written: tokens that are written behind each prompt.

        Raises:
            DataError: a prompt leaves no room for an answer; its place is named.
        """
        limit = getattr(load_config(self.backbone, (*CAUSAL, *SEQ2SEQ)), "max_position_embeddings", None)
        if limit is None:  # T5 has none
            return
        tokenizer = load_tokenizer(str(self.backbone.source), self.backbone.revision)
        asked = [(edit.where or f"edit {edit.id!r}", f"{probe.prompt} {probe.span}")
                 for edit in edits for probe in edit.all_probes]  # fmt: skip
        for (where, text), ids in zip(asked, tokenizer([text for _, text in asked]).input_ids, strict=True):
            if len(ids) + written > limit:
                raise DataError(
                    f"{where}: {text[:60]!r}... has {len(ids)} tokens, and with judging.max_new_tokens {written} more "
                    f"that is over the {limit} that the model reads: shorten it, or leave it out"
                )

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model in evaluation mode, and its tokenizer: a copy of its own for each call."""
        tokenizer = load_tokenizer(str(self.backbone.source), self.backbone.revision)
        load = load_seq2seq if self.architecture == "encoder-decoder" else load_causal
        return load(self.backbone, tokenizer).eval(), tokenizer


@dataclass
class Opened:
    """An editor that was taught nothing yet, and what is known of it beside.

    Args:
        editor: learns edits, answers, and forgets all by `reset`; its `stored_bytes` is what has to be kept beside the
            base model for all that it was taught.
        training_seconds: what was trained before it saw a fact; 0 where nothing was, None where it is not known.
        take_out: how one fact can be taken out again, or why it cannot, in a few words.
        can_take_out: whether it can.
    """

    editor: EditedModel
    take_out: str
    can_take_out: bool
    training_seconds: float | None = 0.0


@dataclass(kw_only=True)
class Way(ABC):
    """One way of getting facts into a model, with its settings.

    Args:
        bases: names of the models that it is tried on; null for all that it applies to.

    Attributes:
        method: what kind it is.
        together: whether all facts get into one model; otherwise each subject's is taught to a model of its own.
        anew: whether n facts are taught at once to the base model, for each n that is judged; otherwise facts are added
            to those that were taught before.
        seeded: whether it draws anything; otherwise one seed speaks for all.
    """

    method: ClassVar[Method]
    together: ClassVar[bool] = True
    anew: ClassVar[bool] = True
    seeded: ClassVar[bool] = True
    bases: list[str] | None = field(default=None)

    def unfit(self, base: Base, facts: FactSet) -> str:
        """Why it does not apply to this model or these facts; empty where it does. Quickly told: nothing is loaded."""
        return ""

    def files(self) -> Sequence[Path]:
        """Files and folders that it reads: where they change, it is tried again."""
        return ()

    @abstractmethod
    def open(self, base: Base, facts: FactSet, seed: int, folder: Path) -> Opened:
        """Load the model, and make the editor.

        Args:
            base: the model.
            facts: those that will be taught.
            seed: of everything that is drawn.
            folder: empty, for whatever the way keeps on the disk; it goes away after the trial.

        Raises:
            DataError: it does not fit the model, or its settings fit nothing.
        """
