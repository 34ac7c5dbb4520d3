"""What a run leaves beside its weights: its configuration, hyper-parameters for TensorBoard, test results,
predictions. Knows no method.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.loggers import TensorBoardLogger

from kedit.editing.sources import DataError
from kedit.running.files import write_whole
from kedit.running.runs import RunFolder


class SavedConfig(Callback):
    """Saves the resolved configuration beside checkpoints and logs, when a fit has been prepared and is to start."""

    def __init__(self, folder: RunFolder, config: str, is_new: bool = False) -> None:
        self.folder = folder
        self.config = config
        self.is_new = is_new

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            if self.is_new and self.folder.holds_a_run:
                raise DataError(
                    f"{self.folder.held_in}: another run of that name has begun meanwhile: begin this one again, under "
                    "another --run.name where runs are not numbered"
                )
            for folder in (self.folder.checkpoints, self.folder.logs):
                write_whole(folder / "config.yaml", self.config)


def flat_hyperparameters(config: str) -> dict[str, int | float | str | bool]:
    """What a configuration says of model, data and seed, as TensorBoard's HPARAMS tab shows it: one level, scalars."""
    given = yaml.safe_load(config)
    flat: dict[str, int | float | str | bool] = {"seed": given.get("seed_everything", 0)}
    for part in ("model", "data"):
        _flatten(part, given.get(part), flat)
    return flat


def _flatten(name: str, value: Any, flat: dict[str, Any]) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _flatten(name if key == "init_args" else name if key == "class_path" else f"{name}.{key}", inner, flat)
    elif isinstance(value, int | float | str | bool):
        flat[name] = value
    elif value is not None:
        flat[name] = json.dumps(value)


def log_hyperparameters(trainer: Trainer, hyperparameters: dict[str, Any], metrics: Mapping[str, float]) -> None:
    """Tie hyper-parameters and the names of final metrics together for TensorBoard's HPARAMS tab.

    Called once at the end, for TensorBoard keeps the first such record only. TensorBoardLogger's own method would add
    the final values to the curves, at step 0.
    """
    if not trainer.is_global_zero:
        return
    from torch.utils.tensorboard.summary import hparams

    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            writer = logger.experiment._get_file_writer()
            for summary in hparams(hyperparameters, dict(metrics)):
                writer.add_summary(summary)
            logger.experiment.flush()


def report(results: Mapping[str, float], meanings: Mapping[str, str], path: Path | None = None) -> None:
    """Print results as a table, and write them as flat JSON.

    Args:
        results: value by key, as in `test/description_f1/seen`. KEY_ci_low and KEY_ci_high are the ends of KEY's
            interval and are printed beside it.
        meanings: what a key stands for, in some words; may lack keys.
        path: the file to write, if any.
    """
    numbers = {key: float(value) for key, value in results.items()}
    shown = [key for key in numbers if not key.endswith(("_ci_low", "_ci_high"))]
    width = max(map(len, shown), default=0)
    intervals = {key: f"[{numbers[f'{key}_ci_low']:.4f}, {numbers[f'{key}_ci_high']:.4f}]"
                 for key in shown if f"{key}_ci_low" in numbers}  # fmt: skip
    beside = max(map(len, intervals.values()), default=0)
    print()
    # those that say what came out, then all others
    first = [key for key in meanings if key in shown]
    for key in [*first, *(key for key in shown if key not in meanings)]:
        interval = f"  {intervals.get(key, ''):<{beside}}" if beside else ""
        print(f"{key:<{width}}  {numbers[key]:>8.4f}{interval}  {meanings.get(key, '')}".rstrip())
    if path is not None:
        write_whole(path, json.dumps(numbers, indent=1) + "\n")
        print(f"\nwritten to {path}", flush=True)


class PredictionFile(BasePredictionWriter):
    """Writes predictions as JSON Lines, each batch as soon as it is there.

    Args:
        path: the file; what it held is replaced.
    """

    def __init__(self, path: Path) -> None:
        super().__init__("batch")
        self.path = path
        self.written = 0
        self._file: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "predict" and trainer.world_size > 1:
            raise DataError(
                f"predict writes one file in order and runs on one device, not on {trainer.world_size}: "
                "add --trainer.devices 1 --trainer.num_nodes 1"
            )

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("w", encoding="utf-8")

    def write_on_batch_end(self, trainer: Trainer, pl_module: LightningModule, prediction: Any, *_: Any) -> None:
        for row in prediction or ():
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self.written += 1
        self._file.flush()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.finish()

    def finish(self) -> None:
        """Close the file and say what is in it; where there was nothing to predict, Lightning began nothing."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8")
        elif self._file.closed:
            return
        self._file.close()
        print(f"{self.written:,} predictions written to {self.path}", flush=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._file is not None:
            self._file.close()
