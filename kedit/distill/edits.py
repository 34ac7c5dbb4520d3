"""Edits as they are kept: what was taught, by which sentences and how, and the adapter that holds it. Knows no model.

A folder of edits is one PEFT adapter, their sum, with a file that says which part of it is which edit.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig
from torch import Tensor

from kedit.distill.loss import Divergence
from kedit.distill.regularise import Regularisation
from kedit.distill.rows import Kind, Positions, Sentence, Template
from kedit.distill.transfer import Filters
from kedit.editing.probes import Fact
from kedit.editing.sources import DataError
from kedit.lm.adapter_files import read_adapter, read_config, write_adapter
from kedit.lm.adapters import Lora
from kedit.lm.optim import Schedule

EDITS = "edits.jsonl"
FORMAT = 1


@dataclass
class EditSettings:
    """How an edit is made.

    Args:
        sentences: how many the model writes of each fact for which none are given.
        rounds: how often it is asked again for those that it lacks.
        start_with_name: let it go on from the entity's name; `where_needed` does so every other round, for facts that
            lack sentences, and otherwise leaves it free to name the entity later.
        max_new_tokens: longest sentence that it writes.
        temperature: at which it writes.
        top_p: from how likely tokens.
        filters: which of its sentences are kept.
        template: how a definition stands before a sentence.
        positions: which predictions are compared: those after the mention of the entity, or all.
        divergence: how they are compared; all of the teacher's vocabulary is, so it has no top_k.
        regularisation: text on which the model is to stay as it was before all edits.
        passes: times through the sentences.
        batch: sentences of a step.
        row_tokens: most tokens of a packed row.
        learning_rate: of AdamW; models of billions of weights want less.
        schedule: of the learning rate, over all steps.
        weight_decay: of AdamW.
        clip: longest gradient; null for any.
        seed: of everything that is drawn.
    """

    sentences: int = 5
    rounds: int = 4
    start_with_name: bool | Literal["where_needed"] = True
    max_new_tokens: int = 48
    temperature: float = 0.9
    top_p: float = 0.95
    filters: Filters = field(default_factory=Filters)
    template: Template = field(default_factory=Template)
    positions: Positions = "after_mention"
    divergence: Divergence = field(default_factory=Divergence)
    regularisation: Regularisation = field(default_factory=lambda: Regularisation(text=2, alike=2))
    passes: int = 10
    batch: int = 16
    row_tokens: int = 512
    learning_rate: float = 1e-3
    schedule: Schedule = field(default_factory=Schedule)
    weight_decay: float = 0.0
    clip: float | None = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("sentences", "rounds", "max_new_tokens", "passes", "batch", "row_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"settings.{name} is {getattr(self, name)}, wanted at least 1")
        if self.start_with_name not in (True, False, "where_needed"):
            came = self.start_with_name
            raise ValueError(f"settings.start_with_name is {came!r}, wanted true, false or where_needed")
        for name in ("temperature", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"settings.{name} is {getattr(self, name)}, wanted more than 0")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"settings.clip is {self.clip}, wanted more than 0, or None for no limit")
        if self.divergence.top_k is not None:
            raise ValueError("settings.divergence.top_k is for caches of large transfer sets: leave it out here")

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "EditSettings":
        """What `asdict` gave."""
        default = cls()
        return cls(**{
            name: type(getattr(default, name))(**value) if isinstance(value, dict) else value
            for name, value in record.items()
        })  # fmt: skip


@dataclass
class Edit:
    """One call's facts, with the adapter that was learned for them.

    Args:
        number: of the call; by it the adapter's first values are drawn.
        facts: what was taught; none where an adapter was made elsewhere.
        sentences: of all kinds, their `fact` counting in `facts`.
        settings: how it was made.
        made: when, ISO 8601 in UTC.
        tensors: the adapter, by the names of PEFT's files.
    """

    number: int
    facts: tuple[Fact, ...] = ()
    sentences: tuple[Sentence, ...] = ()
    settings: EditSettings = field(default_factory=EditSettings)
    made: str = ""
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def ids(self) -> set[str]:
        return {fact.id for fact in self.facts}

    def without(self, ids: set[str]) -> "Edit":
        """The edit as it would have been asked for without these facts, not learned yet."""
        kept = [number for number, fact in enumerate(self.facts) if fact.id not in ids]
        place = {number: index for index, number in enumerate(kept)}
        return replace(
            self,
            facts=tuple(self.facts[number] for number in kept),
            sentences=tuple(s._replace(fact=place[s.fact]) for s in self.sentences if s.fact in place),
            tensors={},
        )


def joined(edits: Sequence[Edit]) -> dict[str, Tensor]:
    """One adapter that adds what all of them add: their A one over the other, their B side by side."""
    return {
        name: torch.cat([edit.tensors[name] for edit in edits], _rank_axis(name)).contiguous()
        for name in edits[0].tensors
    }


def parted(tensors: Mapping[str, Tensor], rank: int) -> list[dict[str, Tensor]]:
    """The adapters of this rank that were joined."""
    names = list(tensors)
    pieces = [tensors[name].split(rank, _rank_axis(name)) for name in names]
    return [{name: piece.clone() for name, piece in zip(names, one, strict=True)} for one in zip(*pieces, strict=True)]


def _rank_axis(name: str) -> int:
    return 0 if ".lora_A." in name else 1


# files ----------------------------------------------------------------------------------------------------------------


@contextmanager
def whole_folder(folder: str | Path, sign: str) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` when all went well and else leaves no trace.

    Args:
        folder: where it is to stand. One that is there is replaced if it is empty or holds the file `sign`.
        sign: file by which a folder of this kind is known.

    Raises:
        DataError: the folder holds something else.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / sign).is_file())):
        raise DataError(f"{folder} is not empty and holds no {sign}: name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o755)
        if folder.exists():
            old = folder.rename(partial.with_name(f"{partial.name}.old"))
            partial.rename(folder)
            shutil.rmtree(old)
        else:
            partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_edits(
    folder: str | Path, edits: Sequence[Edit], config: LoraConfig, lora: Lora, base: str, revision: str | None,
    fingerprint: str,
) -> None:  # fmt: skip
    """Write edits, at least one, as one PEFT adapter with `edits.jsonl` beside it.

    Args:
        folder: what to write; one of edits that is there is replaced, once the new one is whole.
        edits: the edits.
        config: the description of all of them joined.
        lora: that of each.
        base: hub id or folder of the base model.
        revision: of a hub model.
        fingerprint: of the base model.
    """
    head = {"format": FORMAT, "edits": len(edits), "fingerprint": fingerprint, "lora": asdict(lora)}
    lines = [json.dumps(line, ensure_ascii=False) for line in (head, *map(_record, edits))]
    with whole_folder(folder, EDITS) as partial:
        write_adapter(partial, config, joined(edits), base, revision)
        (partial / EDITS).write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_edits(folder: str | Path, fingerprint: str) -> tuple[Lora, list[Edit]]:
    """What `write_edits` wrote; or an adapter that was made elsewhere, as one edit whose facts are not known.

    Raises:
        OSError: the adapter is incomplete or damaged.
        DataError: so is the list of edits; or they are of another base model.
    """
    folder = Path(folder).expanduser()
    if not (folder / EDITS).is_file():
        lora = _plain(read_config(folder), folder)
        return lora, [Edit(0, tensors=read_adapter(folder)[1])]
    cut = f"{folder / EDITS}: cut off or damaged: save the edits again"
    try:
        head, *records = map(json.loads, (folder / EDITS).read_text(encoding="utf-8").splitlines())
        if head["format"] != FORMAT:
            raise DataError(
                f"{folder / EDITS} has format {head['format']}, wanted {FORMAT}: written by another version"
            )
        edits = [_edit(record) for record in records]
        lora = Lora(**head["lora"])
        number, of = head["edits"], head["fingerprint"]
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(cut) from error
    if of != fingerprint:
        raise DataError(f"{folder}: these are edits of another base model: load the one that they were made on")
    tensors = parted(read_adapter(folder)[1], lora.rank)
    if not len(edits) == number == len(tensors):
        raise DataError(cut)
    return lora, [replace(edit, tensors=own) for edit, own in zip(edits, tensors, strict=True)]


def _plain(config: LoraConfig, folder: Path) -> Lora:
    """Our description of an adapter.

    Raises:
        DataError: it has what ours has not.
    """
    others = [name for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")
              if getattr(config, name, None)]  # fmt: skip
    if config.bias != "none":
        others.append("bias")
    if others or isinstance(config.target_modules, str) or not config.target_modules:
        raise DataError(
            f"{folder}: an adapter with {', '.join(others) or 'a pattern of target_modules'}; wanted plain LoRA with a "
            "list of target_modules: merge it into its base model first"
        )
    return Lora(config.r, config.lora_alpha, config.lora_dropout, sorted(config.target_modules))


def _record(edit: Edit) -> dict[str, Any]:
    keys = ("id", "name", "aliases", "definition")
    return {
        "number": edit.number,
        "made": edit.made,
        "facts": [{key: getattr(fact, key) for key in keys} for fact in edit.facts],
        "sentences": [[s.fact, s.text, s.mention, int(s.kind)] for s in edit.sentences],
        "settings": asdict(edit.settings),
    }


def _edit(record: Mapping[str, Any]) -> Edit:
    facts = tuple(Fact(**{**fact, "aliases": tuple(fact["aliases"])}) for fact in record["facts"])
    sentences = tuple(
        sentence(facts, fact, text, None if mention is None else (mention[0], mention[1]), kind)
        for fact, text, mention, kind in record["sentences"]
    )
    return Edit(record["number"], facts, sentences, EditSettings.from_record(record["settings"]), record["made"])


def sentence(
    facts: Sequence[Fact], fact: int, text: str, mention: tuple[int, int] | None = None, kind: int = Kind.EDIT
) -> Sentence:
    """A sentence for student and teacher: before one that is to teach something, the teacher reads the definition."""
    return Sentence(fact, facts[fact].definition if kind == Kind.EDIT else "", text, mention, kind)
