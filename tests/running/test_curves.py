"""What TensorBoard shows of a run that was killed and gone on with is what it shows of one that was left alone."""

import time

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import PER_EPOCH, train

from kedit.running.curves import WholeCurves

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class EndBefore(Callback):
    """Ends the run before a batch, with nothing saved."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.datamodule.consumed == self.batch:
            raise KeyboardInterrupt


class NowAndThen(Callback):
    """Logs in the first batch of each third step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx % 6 == 0:
            pl_module.log("train/rare", float(trainer.global_step))


def curves(folder, *names):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in names}


def test_what_a_step_does_not_log_is_not_logged_again(tmp_path):
    arguments = logged(tmp_path) | {"accumulate_grad_batches": 2, "max_epochs": 1, "val_check_interval": 1.0}
    train(tmp_path / "a", callbacks=[WholeCurves(), NowAndThen()], **arguments)
    drawn = curves(tmp_path, "train/rare", "train/loss")
    assert drawn["train/rare"] == [(step, step) for step in range(0, PER_EPOCH, 3)]
    assert len(drawn["train/loss"]) == PER_EPOCH


def logged(folder, **more):
    logger = TensorBoardLogger(folder, "", "", **more)
    return {"logger": logger, "log_every_n_steps": 1, "val_check_interval": 4}


@pytest.mark.parametrize("step", [4, PER_EPOCH])
def test_a_validation_that_was_logged_after_the_last_checkpoint_is_there_once(tmp_path, step):
    train(tmp_path / "a", every=4, callbacks=[WholeCurves()], **logged(tmp_path / "whole"))
    with pytest.raises(SystemExit):
        train(tmp_path / "b", every=4, callbacks=[WholeCurves(), EndBefore(step + 2)], **logged(tmp_path / "parts"))
    time.sleep(1.1)  # files are read by their names, which begin with the second
    more = logged(tmp_path / "parts", purge_step=step)
    train(tmp_path / "b", every=4, resume=tmp_path / "b" / f"step={step}.ckpt", callbacks=[WholeCurves()], **more)
    drawn = [curves(tmp_path / name, "train/loss", "val/loss") for name in ("whole", "parts")]
    assert drawn[0] == drawn[1]
    assert [one for one, _ in drawn[0]["train/loss"]] == list(range(3 * PER_EPOCH))
