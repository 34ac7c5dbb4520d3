"""Small models of the made-up world that are made once, when they are first needed, and kept in the cache.

Knows no world and no method.
"""

import hashlib
import json
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from filelock import FileLock
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.lm.backbones import MadeModel
from kedit.lm.cache import cache_folder


class WorldModel(MadeModel):
    """A model whose weights are a function of its arguments, a dataclass', and of code.

    It stands in the cache (`KEDIT_CACHE`, else ~/.cache/kedit); what it is worth stands in quality.json beside its
    weights.

    Attributes:
        stem: how its folder's name begins.
        made_by: modules of kedit by whose code it is made.
    """

    stem: ClassVar[str]
    made_by: ClassVar[Sequence[str]]

    def folder(self) -> Path:
        """Where it stands, or will stand."""
        digest = hashlib.sha256(json.dumps(asdict(self)).encode())  # type: ignore[call-overload]
        for module in self.made_by:
            digest.update(Path(str(find_spec(f"kedit.{module}").origin)).read_bytes())  # type: ignore[union-attr]
        return cache_folder() / "models" / f"{self.stem}-{digest.hexdigest()[:16]}"

    def make(self) -> Path:
        """The Hugging Face folder that holds it, written unless it is complete."""
        folder = self.folder()
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):  # two runs may want it at once
            if not (folder / "quality.json").exists():
                started = time.process_time()
                model, tokenizer = self.train()
                processor = time.process_time() - started
                tokenizer.save_pretrained(folder)
                model.save_pretrained(folder)
                quality = {name: round(value, 4) for name, value in self.quality(model, tokenizer).items()}
                print(f"base model in {folder}: {self.told(quality)}", flush=True)
                quality |= {"processor_seconds": round(processor, 1)}
                (folder / "quality.json").write_text(json.dumps(quality, indent=1), encoding="utf-8")
        return folder

    @abstractmethod
    def train(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model after all steps, and its tokenizer, with progress printed."""

    @abstractmethod
    def quality(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        """What it is worth."""

    @abstractmethod
    def told(self, quality: dict[str, float]) -> str:
        """The same in a sentence."""

    def _positive(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} for {type(self).__name__}, wanted at least 1")
