"""What a checkpoint is of: the format it is written in, the tokenizer its model was trained with. Knows no method."""

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from kedit.editing.sources import DataError
from kedit.running.manifest import FORMAT, STAMP


class Stamp(Callback):
    """Writes a stamp into each checkpoint, and refuses one that was trained with another tokenizer.

    A tokenizer of as many tokens as the right one loads without a word otherwise, and every text means another.
    """

    def __init__(self) -> None:
        self._tokenizer: tuple[int, str] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[STAMP] = {"format": FORMAT, "version": _version(), "tokenizer": self._fingerprint(pl_module)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Raises DataError where the tokenizer is another."""
        then, now = checkpoint.get(STAMP, {}).get("tokenizer"), self._fingerprint(pl_module)
        if then is not None and now is not None and then != now:
            raise DataError(
                f"checkpoint {trainer.ckpt_path} was trained with another tokenizer than this configuration names: "
                "give the run's own config.yaml, which stands beside it, or the tokenizer of its model"
            )

    def _fingerprint(self, module: LightningModule) -> str | None:
        tokenizer = getattr(module, "tokenizer", None)
        if tokenizer is None or not hasattr(tokenizer, "get_vocab"):
            return None
        if self._tokenizer is None or self._tokenizer[0] != id(tokenizer):
            known = json.dumps([sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_ids)])
            self._tokenizer = id(tokenizer), hashlib.sha256(known.encode()).hexdigest()
        return self._tokenizer[1]


def _version() -> str:
    try:
        return version("kedit")
    except PackageNotFoundError:
        return "unknown"
