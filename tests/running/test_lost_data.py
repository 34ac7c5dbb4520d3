"""A loader's worker that is killed, and a record that is damaged, are named; the run before it is left as it was."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch  # noqa: F401  its logger keeps the stderr it finds when it is imported
import numpy as np
import pytest
import torch
import yaml
from conftest import kilm_data
from tiny_training import Data
from torch.utils.data import DataLoader

from kedit.cli import main
from kedit.editing.sources import DataError
from kedit.kilm.corpus import Corpus
from kedit.running.data import BatchLoader
from kedit.running.workers import _watch, forking, lost_worker

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

PLUGIN = """
import os, signal
from kedit.editing.sources import DataError
from tiny_command import TinyData

class Hurt(TinyData):
    def __init__(self, kind: str, num_workers: int = 0):
        super().__init__()
        self.kind, self.num_workers = kind, num_workers
    def make_batch(self, epoch, batch):
        if (epoch, batch) == (1, 3):
            if self.kind == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "damaged":
                raise DataError("shard-2.npy: record 17 is cut short")
            if self.kind == "missing":
                open("shard-3.npy")
            raise ZeroDivisionError("ours")
        return super().make_batch(epoch, batch)
"""


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("KEDIT_ALLOW", "tiny_command,hurt")
    Path("hurt.py").write_text(PLUGIN)

    def fit(kind: str, workers: int) -> tuple[int, str]:
        config = {
            "model": {"class_path": "tiny_command.TinyModule"},
            "data": {"class_path": "hurt.Hurt", "init_args": {"kind": kind, "num_workers": workers}},
            "trainer": {"accelerator": "cpu", "max_epochs": 2, "enable_model_summary": False},
            "checkpoint": {"every_n_train_steps": 2, "save_last": True},
        }
        Path("c.yaml").write_text(yaml.safe_dump(config))
        capsys.readouterr()
        code = main(["fit", "--config", "c.yaml"])
        text = capsys.readouterr().err
        return code, text[text.index("python -m kedit fit: error") if code == 2 else 0 :]

    return fit


def test_a_worker_that_is_killed_is_told_and_the_run_can_go_on(fit):
    code, text = fit("killed", 2)
    assert code == 2
    assert "that makes batches was killed" in text
    assert "lower data.num_workers, and go on by --ckpt_path last" in text
    assert len(text.strip().splitlines()) <= 3
    assert torch.load("checkpoints/run/last.ckpt", weights_only=True)["global_step"] >= 2


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("kind", "words"), [("damaged", "shard-2.npy: record 17"), ("missing", "shard-3.npy")])
def test_a_damaged_record_is_named_wherever_it_is_read(fit, kind, words, workers):
    code, text = fit(kind, workers)
    assert code == 2
    assert "batch 3 of epoch 1 cannot be made: " in text
    assert words in text
    assert "worker process" not in text


def test_an_error_of_our_own_keeps_its_traceback_and_says_in_which_batch(fit):
    code, text = fit("ours", 1)
    assert code == 1
    assert "ZeroDivisionError: ours" in text
    assert "in making batch 3 of epoch 1" in text


def test_the_death_of_a_worker_is_told_when_a_batch_is_asked_for_and_nowhere_else():
    loader = BatchLoader(Data(), num_workers=2)
    batches = iter(loader)
    next(batches)
    dead, other = loader._batches._workers
    os.kill(dead.pid, signal.SIGKILL)
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
    time.sleep(0.05)  # where the exception came before
    dead.join()  # as others do who start processes: torch can find it no more
    with pytest.raises(
        DataError, match=f"of epoch 0 was not made: the process {dead.pid} that makes batches was killed"
    ):
        next(batches)
    assert other.is_alive()
    assert lost_worker(ValueError("else")) == ""


@pytest.fixture
def no_handler():
    """torch has set its handler once and for all, and Lightning has put back what it found."""
    next(iter(DataLoader(torch.arange(2), num_workers=1)))
    before = _watch.before, signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _watch.before = None
    yield
    _watch.before = before[0]
    signal.signal(signal.SIGCHLD, before[1])


def leaves_half_sent():
    raise ConnectionResetError(104, "Connection reset by peer")


def is_waited_for():
    time.sleep(60)


@pytest.mark.parametrize("meanwhile", [leaves_half_sent, is_waited_for])
def test_a_worker_that_dies_under_way_is_told_at_once_without_the_handler_of_torch(monkeypatch, no_handler, meanwhile):
    loader = BatchLoader(Data(), num_workers=1)
    batches = iter(loader)
    next(batches)

    def dies(*_):
        os.kill(loader._batches._workers[0].pid, signal.SIGKILL)
        meanwhile()

    monkeypatch.setattr(type(loader._batches), "__next__", dies)
    began = time.monotonic()
    with pytest.raises(DataError, match=r"that makes batches was killed \(Killed\)"):
        next(batches)
    assert time.monotonic() - began < 30


ABANDONED = """
import os, signal, sys
from tiny_training import Data
from torch.utils.data import DataLoader
from kedit.running.data import BatchLoader
loader = BatchLoader(Data(), num_workers=2)
batches = iter(loader)
next(batches)
os.kill(loader._batches._workers[1].pid, signal.SIGKILL)
try:
    list(batches)
except Exception as error:
    sys.kept = error  # as a traceback keeps what it shows
"""


def test_a_process_whose_worker_was_killed_ends():
    tests = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    assert subprocess.run([sys.executable, "-c", ABANDONED], env=environment, timeout=120).returncode == 0


def other(folder: Path, corpus: str, name: str, place: tuple, value: int) -> Path:
    """A copy of a corpus with another number at a place of one array."""
    shutil.copytree(corpus, folder)
    array = np.load(folder / f"{name}.npy", mmap_mode="r+")
    array[place] = value
    array.flush()
    return folder


@pytest.mark.parametrize(
    ("name", "place", "value", "words"),
    [
        ("tokens", (0,), 60_000, r"tokens\.npy: unit 0 holds token 60,000 of a vocabulary of"),
        ("unit_offsets", (3,), -5, r"unit_offsets\.npy: unit 2 does not lie within tokens\.npy"),
        ("unit_offsets", (7,), 1 << 40, r"unit_offsets\.npy: unit 6 does not lie within tokens\.npy"),
        ("mentions", (0, 2), 1 << 30, r"mentions\.npy: unit \d+ has a mention \[.*\] that is none"),
        ("mentions", (0, 1), -1, r"mentions\.npy: unit \d+ has a mention"),
    ],
)
def test_a_damaged_corpus_is_named_with_file_and_unit(tmp_path, world_corpus, name, place, value, words):
    corpus = Corpus(other(tmp_path / "corpus", world_corpus["bart"], name, place, value))
    with pytest.raises(DataError, match=rf"the corpus in .*corpus is damaged: {words}"):
        [(len(corpus.lengths), corpus.tokens(unit), corpus.mentions(unit)) for unit in range(len(corpus))]


def test_a_unit_that_is_damaged_while_a_run_reads_it_stops_the_run_with_its_batch(tmp_path, world_corpus):
    folder = other(tmp_path / "corpus", world_corpus["bart"], "tokens", (0,), 5)
    data = kilm_data(str(folder))
    np.load(folder / "tokens.npy", mmap_mode="r+")[:] = 60_000
    with pytest.raises(DataError, match=r"batch 0 of epoch 0 cannot be made: .*tokens\.npy: unit \d+ holds token"):
        next(iter(data.train_dataloader()))


@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_to_all_processes_costs_no_worker(asked):
    data = Data(num_workers=2)
    loader = BatchLoader(data, num_workers=2)
    batches = iter(loader)
    done = [next(batches).rows for _ in range(asked)]
    if not asked:  # workers that have only just been forked
        with forking():
            loader._batches = iter(loader._loader(0))
        loader._next = 0
    for worker in loader._batches._workers:
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGUSR1)
    rows = done + [batch.rows for batch in batches]
    assert rows == [data.make_batch(0, number).rows for number in range(len(loader))]
    assert all(worker.is_alive() for worker in loader._batches._workers)
