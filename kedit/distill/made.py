"""A transfer set that is written when it is first needed, and kept. Knows no training."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kedit.distill.generate import write_sentences
from kedit.distill.generators import Generator
from kedit.distill.language_model import ModelGenerator
from kedit.distill.transfer import Filters
from kedit.editing.probes import Knowledge
from kedit.editing.sources import DataError
from kedit.lm.backbones import Backbone
from kedit.lm.cache import cache_folder


@dataclass
class MadeTransfer:
    """A transfer set to be written when it is first needed, and kept in the cache (`KEDIT_CACHE`, else ~/.cache/kedit).

    Args:
        generator: writes the sentences; by default ModelGenerator, whose default is the model that is to learn.
        per_fact: sentences of each fact; null keeps all that a file or a source gives.
        filters: which sentences are kept.
        rounds: how often a model is asked again for the facts that lack sentences.
    """

    generator: Generator | None = None
    per_fact: int | None = 5
    filters: Filters | None = None
    rounds: int = 4

    def __post_init__(self) -> None:
        for name in ("per_fact", "rounds"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise DataError(f"make.{name} is {value}, wanted at least 1")

    def folder(self, knowledge: Knowledge, backbone: Backbone, seed: int) -> Path:
        """Where the set of these facts stands, or will stand."""
        facts = [[fact.id, fact.name, fact.aliases, fact.definition] for fact in self._facts(knowledge).facts]
        about = [facts, knowledge.forbidden, self._generator(backbone).describe(knowledge), self.per_fact, self.rounds,
                 asdict(self.filters or Filters()), seed]  # fmt: skip
        return cache_folder() / "transfer" / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]

    def write(self, knowledge: Knowledge, backbone: Backbone, seed: int) -> Path:
        """The set's folder, written unless it is complete."""
        folder = self.folder(knowledge, backbone, seed)
        write_sentences(
            self._facts(knowledge), self._generator(backbone), folder, self.filters, self.per_fact, self.rounds, seed,
            wait=True,
        )  # fmt: skip
        return folder

    def _generator(self, backbone: Backbone) -> Generator:
        generator = self.generator or ModelGenerator()
        if isinstance(generator, ModelGenerator) and generator.backbone is None:
            return replace(generator, backbone=backbone)
        return generator

    @staticmethod
    def _facts(knowledge: Knowledge) -> Knowledge:
        """Those kept for tuning too: rivals are tuned on them."""
        ids = {fact.id for fact in knowledge.facts}
        return replace(knowledge, facts=[*knowledge.facts, *(f for f in knowledge.validation_facts if f.id not in ids)])
