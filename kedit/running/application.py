"""`fit`, `validate`, `test` and `predict`: LightningCLI with a run's folders, one-line errors, and the callbacks that
every method gets. Knows Lightning; a method comes in by the configuration's `class_path`.
"""

import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from transformers.utils import logging as transformers_logging

from kedit.editing.sources import DataError
from kedit.running.curves import WholeCurves
from kedit.running.directories import make_durable
from kedit.running.errors import fullest, is_out_of_space, space_message
from kedit.running.estimate import RunEstimate
from kedit.running.gathered import WholeForJudging
from kedit.running.guard import FiniteTraining, Guard
from kedit.running.last import LastCheckpoint, StepCheckpoint
from kedit.running.lock import only_one
from kedit.running.parsing import PROGRAM, Parser, refused, restrict_imports
from kedit.running.places import check_places
from kedit.running.position import TrainingPosition
from kedit.running.progress import ParameterCount, progress_bar
from kedit.running.records import PredictionFile, SavedConfig, flat_hyperparameters, log_hyperparameters, report
from kedit.running.runs import (
    Run,
    RunFolder,
    existing_run,
    find_checkpoint,
    holds_checkpoint,
    new_run,
    newest_complete,
    step_of,
)
from kedit.running.signals import OrderlyStop
from kedit.running.stamp import Stamp
from kedit.running.throughput import GradientNorm, TrainingThroughput
from kedit.running.workers import lost_worker

# what a checkpoint may contain, what is returned and how it is printed is not for a configuration to say
FIXED = {"weights_only", "return_predictions", "verbose"}
SET_UP = {"prepare_data", "setup", "configure_model", "configure_optimizers"}


if not torch.cuda.is_available():
    # or DeepSpeed, which looks for it when it is imported, says on standard output that there is none
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


class Application(LightningCLI):
    """Parses the command line, builds model, data and trainer, and runs one of the Trainer's methods.

    Args:
        module: base class of the models that a configuration may name.
        command: fit, validate, test or predict.
        arguments: the command line after the command.
    """

    folder: RunFolder
    saved_config: str

    def __init__(self, module: type[LightningModule], command: str, arguments: Sequence[str]) -> None:
        self.command = command
        # advertising, and that our own summary stands in for Lightning's
        logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
            lambda r: not any(words in r.getMessage() for words in ("litlogger", "with model summary callbacks"))
        )
        logging.getLogger("lightning.pytorch.trainer.connectors.checkpoint_connector").addFilter(
            lambda r: "weights_only" not in r.getMessage()  # of our own checkpoints
        )
        warnings.filterwarnings("ignore", message=".*(LeafSpec|is_gradient_checkpointing).*")  # between two libraries
        # what is as it should be: a run is gone on with, a batch loader knows no indices
        warnings.filterwarnings("ignore", message=".*(infer the batch indices|exists and is not empty).*")
        restrict_imports()
        if not sys.stderr.isatty():
            transformers_logging.disable_progress_bar()  # a bar in a log file is many lines
        Parser.begin(arguments)
        super().__init__(
            module,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,  # it writes in every stage
            trainer_defaults={"use_distributed_sampler": False},
            parser_class=Parser,
            parser_kwargs={"prog": PROGRAM},
            auto_configure_optimizers=False,
            args=[command, *arguments],
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        return {self.command: LightningCLI.subcommands()[self.command] | FIXED}

    def setup_parser(self, *args: Any) -> None:
        super().setup_parser(*args)
        command = self._parser(self.command)
        command.prog = f"{PROGRAM} {self.command}"
        command.epilog = (
            "What a model and its data may be told: --model.help CLASS and --data.help CLASS list it, as in "
            "--model.help KilmModule and --data.help KilmData, or DistillModule and DistillData."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)  # without LightningCLI's warning on sys.argv

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: LightningCLI would merge the checkpoint's hyper-parameters over it."""

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=int, default=0, help="The one seed of the run.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(Run, "run")
        parser.add_class_arguments(Guard, "guard")
        parser.add_class_arguments(StepCheckpoint, "checkpoint", skip={"dirpath"}, fail_untyped=False)
        parser.callback_keys.append("checkpoint")
        parser.add_argument(
            "--test_after_fit", type=bool, default=False, help="Whether fit ends by testing its best checkpoint."
        )

    def before_instantiate_classes(self) -> None:
        """Find the run's folders and the checkpoint that is meant; nothing is written yet."""
        config = self.config[self.command]
        run = Run(**config.run.as_dict())
        check_places(
            {part: config[part].as_dict() for part in ("trainer", "checkpoint") if config.get(part) is not None}, run
        )
        wanted = config.get("ckpt_path")
        checkpoint: Path | None = None
        self.is_new = self.command == "fit" and not wanted
        if self.is_new:
            self.folder = new_run(run)
        else:
            self.folder = existing_run(run)
            checkpoint = self._checkpoint(run, wanted)
        config.run.name, config.run.numbered, config.ckpt_path = self.folder.name, False, None
        self.saved_config = self._parser(self.command).dump(config, skip_none=False)
        self.checkpoint = None if checkpoint is None else str(checkpoint)
        say(f"run {self.folder.name}: {self.folder.checkpoints}, {self.folder.logs}")
        if checkpoint is not None:
            say(f"from {checkpoint}")

    def _checkpoint(self, run: Run, wanted: str | None) -> Path | None:
        if wanted in (None, "last") and not holds_checkpoint(self.folder.checkpoints):
            # so that one command line both starts a job and goes on with it; and a published model may be tested
            if self.command == "fit":
                say(f"no checkpoint in {self.folder.checkpoints}: starting at the beginning")
                return None
            name = self.config[self.command].get("model.init_args.backbone.name")
            if not name:
                raise DataError(
                    f"no checkpoint in {self.folder.checkpoints}: train first by `{PROGRAM} fit`, or name the run by "
                    "--run.name or a file by --ckpt_path; random weights are not worth a look"
                )
            say(f"no checkpoint in {self.folder.checkpoints}: taking {name} as it comes")
            return None
        checkpoint, skipped = find_checkpoint(self.folder, wanted or "best")
        for note in skipped:
            say(note)
        if self.command == "fit" and not checkpoint.resolve().is_relative_to(self.folder.checkpoints.resolve()):
            self.folder = new_run(run)
        return checkpoint

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            seed = self._get(self.config, "seed_everything")
            raise DataError(f"seed_everything is {seed}: wanted a number from 0 to {2**32 - 1}") from error

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise refused(error) from error

    def _run_subcommand(self, subcommand: str) -> None:
        name = type(self.model).__name__
        if subcommand == "predict" and type(self.model).predict_step is LightningModule.predict_step:
            raise DataError(f"{name} has no predict: test it, or export it and use it as any Hugging Face model")
        try:
            with contextlib.ExitStack() as stack:
                if subcommand == "fit" and self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
                    without = stack.enter_context(only_one(self.folder.checkpoints))
                    if without:
                        say(f"{self.folder.checkpoints} cannot be locked ({without}): let no other process train there")
                super()._run_subcommand(subcommand)
        except DataError:
            raise
        except Exception as error:
            if is_out_of_space(error):
                newest = newest_complete(self.folder.checkpoints)
                kept = f"; the newest complete checkpoint is {newest}" if newest else ""
                full = _named_file(error) or fullest(self.folder.checkpoints, self.folder.logs)
                raise DataError(space_message(full, kept)) from error
            if lost := lost_worker(error):
                raise DataError(lost) from error
            if isinstance(error, ValueError | TypeError) and (part := _in_set_up(error)):
                raise DataError(f"{part} cannot be set up: {error}") from error
            if not isinstance(error, RuntimeError) or "Error(s) in loading state_dict" not in str(error):
                raise
            first = [line.strip() for line in str(error).splitlines()[1:3]]
            fit = f"checkpoint {self.checkpoint} does not fit {type(self.model).__name__} as configured"
            raise DataError("\n".join([f"{fit} (another architecture or tokenizer?)", *first])) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        self._get(self.config_init, "checkpoint").dirpath = os.path.realpath(self.folder.checkpoints)
        given = self._get(self.config_init, "trainer")
        if given.get("barebones"):
            raise DataError(
                "trainer.barebones true leaves no room for what a run writes: set trainer.logger false, "
                "trainer.enable_checkpointing false and trainer.enable_progress_bar false instead"
            )
        if given.get("enable_checkpointing") is False:
            self._parser(self.command).callback_keys = []  # our `checkpoint` is one, which the Trainer would refuse
        for callback in _list(given.get("callbacks")):
            if isinstance(callback, Checkpoint):
                raise DataError(
                    f"trainer.callbacks: {type(callback).__name__} is not for a run, which goes on from what its own "
                    "one saves: set the keys of `checkpoint` (monitor, every_n_train_steps, save_top_k, ...) instead"
                )
        if given.get("logger") in (None, True):
            kwargs["logger"] = self._logger()
        guard = FiniteTraining(self._get(self.config_init, "guard"))
        callbacks = [TrainingPosition(), guard, TrainingThroughput(), GradientNorm()]
        callbacks += [LastCheckpoint(), WholeCurves(), Stamp(), OrderlyStop(), WholeForJudging()]
        if self.command == "fit":
            callbacks.append(RunEstimate())
            callbacks.append(SavedConfig(self.folder, self.saved_config, self.is_new))
        if self.command == "predict":
            self.predictions = PredictionFile(self.folder.logs / "predictions.jsonl")
            callbacks.append(self.predictions)
        if given.get("enable_progress_bar") is not False and not any(
            isinstance(callback, ProgressBar) for callback in _list(given.get("callbacks"))
        ):
            callbacks.append(progress_bar())
        if given.get("enable_model_summary") is not False and not any(
            isinstance(callback, ModelSummary) for callback in _list(given.get("callbacks"))
        ):
            callbacks.append(ParameterCount())
        self.trainer_defaults["callbacks"] = callbacks
        trainer = super().instantiate_trainer(**kwargs)
        make_durable(trainer.strategy)
        return trainer

    def _logger(self) -> TensorBoardLogger:
        more: dict[str, Any] = {}
        if self.command == "fit" and self.checkpoint is not None:
            # TensorBoard drops what the interrupted run logged after its checkpoint
            more["purge_step"] = step_of(Path(self.checkpoint))
        elif self.command == "fit" and any(self.folder.logs.glob("events.*")):
            more["purge_step"] = 0  # of a run that was started here before
        return TensorBoardLogger(
            save_dir=str(self.folder.logs.parent), name=self.folder.name, version="", default_hp_metric=False, **more
        )

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs |= {"ckpt_path": self.checkpoint, "weights_only": True}
        if subcommand == "predict":
            kwargs["return_predictions"] = False
        return kwargs

    def after_fit(self) -> None:
        metrics = _numbers(self.trainer.callback_metrics, "val/")
        if self._get(self.config, "test_after_fit") and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            saved = self.trainer.checkpoint_callback
            # nothing to be the best by: the weights as they are
            best = getattr(saved, "best_model_path", "") if getattr(saved, "monitor", None) else ""
            metrics |= self._test(ckpt_path=best or None, datamodule=self.datamodule, model=self.model)
        log_hyperparameters(self.trainer, flat_hyperparameters(self.saved_config), metrics)

    def after_predict(self) -> None:
        self.predictions.finish()

    def validate(self, **kwargs: Any) -> None:
        results: dict[str, float] = {}
        for part in self.trainer.validate(**(kwargs | {"verbose": False})):
            results |= part
        if self.trainer.is_global_zero:
            report(results, getattr(self.model, "metric_meanings", {}))

    def test(self, **kwargs: Any) -> None:
        self._test(**kwargs)

    def _test(self, **kwargs: Any) -> dict[str, float]:
        results: dict[str, float] = {}
        for part in self.trainer.test(**(kwargs | {"verbose": False, "weights_only": True})):
            results |= part
        if self.trainer.is_global_zero:
            report(results, getattr(self.model, "metric_meanings", {}), self.folder.logs / "results.json")
        return results


@rank_zero_only
def say(line: str) -> None:
    print(line, flush=True)


def _in_set_up(error: BaseException) -> str:
    """The class in whose set-up an exception was raised, so that the configuration is to blame; empty if in none."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        part = frame.f_locals.get("self")
        if frame.f_code.co_name in SET_UP and isinstance(part, LightningModule | LightningDataModule):
            return type(part).__name__
    return ""


def _named_file(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, OSError) and error.filename:
            return str(error.filename)
        error = error.__cause__ or error.__context__
    return None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _numbers(metrics: Any, prefix: str) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if name.startswith(prefix)}
