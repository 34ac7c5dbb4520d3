"""What a run of RECIPE trained, for contestants: whether it is this base model's, how long it took, and its memory.

Knows no comparison but the base model.
"""

from collections.abc import Sequence
from pathlib import Path

import yaml
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from kedit.comparing.way import Base
from kedit.editing.edits import Edit
from kedit.editing.sources import DataError
from kedit.lm.backbones import CAUSAL, SEQ2SEQ, load_config, load_tokenizer
from kedit.lm.text import fingerprint
from kedit.recipe.memory import EditReport, Memory
from kedit.recipe.tables import StoredEdit
from kedit.recipe.trained import CALIBRATION, DESCRIPTION, TRUNK, Place, find_trained, read_trained

LOGGED = "train/loss"


def find_run(run: str) -> Place:
    """Where the run's parts stand.

    Raises:
        DataError: there is no such run, none of RECIPE, or no complete checkpoint in it.
    """
    try:
        return find_trained(run)
    except DataError as error:
        raise DataError(str(error).replace("--run ", "run ")) from error


def read_of(run: str) -> tuple[Path, ...]:
    """What is read of a run: its weights, and what says what they are."""
    place = find_run(run)
    described = [place.memory / DESCRIPTION, place.memory / TRUNK, place.memory / CALIBRATION]
    return place.weights, *(path for path in described if path.exists())


def of_another_model(run: str, base: Base) -> str:
    """By what it is known that the run's networks were trained for another model than this; empty where by nothing."""
    trained = read_trained(find_run(run).memory)
    config = load_config(base.backbone, (*CAUSAL, *SEQ2SEQ))
    if config.hidden_size != trained.width:
        return (
            f"run {run} was trained for {trained.base}, whose embeddings have {trained.width} numbers; those of this "
            f"model have {config.hidden_size}"
        )
    tokenizer = load_tokenizer(str(base.backbone.source), base.backbone.revision)
    if trained.tokenizer and fingerprint(tokenizer) != trained.tokenizer:
        return f"run {run} was trained for {trained.base}, and the tokenizer of this model is another"
    if trained.bos != base.bos and not config.is_encoder_decoder:
        return f"run {run} was trained with bos: {str(trained.bos).lower()}, and this model is asked otherwise"
    return ""


def training_seconds(place: Place) -> float | None:
    """How long a run trained, by the times at which it logged its loss; None where its logs are not at hand."""
    config = place.folder / "config.yaml"
    run = (yaml.safe_load(config.read_text(encoding="utf-8")) or {}).get("run", {}) if config.is_file() else {}
    logs = Path(run.get("logs", "logs"))
    for folder in (logs / place.folder.name, place.folder.absolute().parent.parent / logs / place.folder.name):
        spans = [_span(file) for file in folder.glob("events.out.tfevents.*")]
        if sum(spans):  # of a run that was gone on with there are several
            return sum(spans)
    return None


def _span(file: Path) -> float:
    logged = (event for event in EventFileLoader(str(file)).Load() for value in event.summary.value
              if value.tag == LOGGED)  # fmt: skip
    times = [event.wall_time for event in logged]
    return max(times) - min(times) if times else 0.0


class MemoryOfRun:
    """A run's memory, whose edits are called by their own ids however often they are taught again."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._stored: dict[str, StoredEdit] = {}

    def edit(self, edits: Sequence[Edit]) -> EditReport:
        """Store edits; they count from now on."""
        report = self.memory.add(edits)
        self._stored |= {edit.id: stored for edit, stored in zip(edits, report.stored, strict=True)}
        self.memory.follow()
        return report

    def forget(self, ids: Sequence[str]) -> None:
        """Take edits out.

        Raises:
            DataError: an id is not known.
        """
        if unknown := [id for id in ids if id not in self._stored]:
            raise DataError(f"the memory holds no edit {', '.join(map(repr, unknown[:10]))}")
        self.memory.forget([self._stored[id].id for id in ids])
        for id in ids:
            del self._stored[id]

    def reset(self) -> None:
        """Forget everything."""
        self.memory.clear()
        self._stored.clear()

    @property
    def stored_bytes(self) -> int:
        """Texts and keys of the edits, without the networks; prompt vectors are made when they are needed."""
        width = self.memory.networks.key_width
        key = width * (2 if self.memory.repository.meta["dtype"] == "float16" else 4)
        return sum(len(one.edit.text.encode()) + key for one in self._stored.values())
