"""The command line, in process but for what needs a process; each LightningCLI trap is pinned here."""

import errno
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch  # noqa: F401  its logger keeps the stderr it finds when it is imported
import pytest
import torch
import yaml

from kedit.cli import COMMANDS, main

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CONFIG = """\
seed_everything: 5
run:
  name: tiny
model:
  class_path: tiny_command.TinyModule
  init_args:
    width: 4
data:
  class_path: tiny_command.TinyData
trainer:
  accelerator: cpu
  max_epochs: 2
  log_every_n_steps: 2
  enable_model_summary: false
checkpoint:
  monitor: val/error
  filename: "{step}"
  save_last: true
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder with a configuration, to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEDIT_ALLOW", "tiny_command")
    Path("tiny.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def run(place, capsys):
    """Run a command; gives (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def error_of(result: tuple[int, str, str]) -> str:
    """The error of a command that must have failed as users' errors do."""
    code, _, stderr = result
    text = stderr[stderr.index("python -m kedit") :]
    assert code == 2, stderr
    assert "Traceback" not in stderr
    assert len(text.strip().splitlines()) <= 3, text
    return text


def change(**parts: object) -> None:
    """Write tiny.yaml with other contents under some keys (dots for nesting)."""
    config = yaml.safe_load(CONFIG)
    for key, value in parts.items():
        *path, last = key.split("__")
        place = config
        for name in path:
            place = place.setdefault(name, {})
        place[last] = value
    Path("tiny.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


FIT = ("fit", "--config", "tiny.yaml")


# --- help


def test_help_lists_every_command_and_imports_nothing_heavy():
    start = time.monotonic()
    code = "import sys, kedit.cli; kedit.cli.main(['--help']); print({'torch', 'lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 3
    lines = done.stdout.splitlines()
    for name, (summary, _) in COMMANDS.items():
        assert any(name in line and summary in line for line in lines)
    assert lines[-1] == "set()"


def test_no_command_shows_the_overview_and_a_wrong_one_the_nearest(run):
    assert run()[0] == 2
    assert "did you mean predict?" in error_of(run("preditc"))
    assert "there are fit, validate" in error_of(run("xyzzy"))


def test_help_of_a_command_names_its_keys(run):
    code, out, _ = run("fit", "--help")
    assert code == 0
    assert "usage: python -m kedit fit" in out
    for key in ("--run.name", "--checkpoint.monitor", "--test_after_fit", "--seed_everything", "--ckpt_path"):
        assert key in out
    assert "--checkpoint.dirpath" not in out
    assert "--model.help KilmModule" in out[-300:]


@pytest.mark.parametrize(("command", "keys"), [("corpus", ("--dump", "--setting")), ("export", ("--push_to",))])
def test_help_of_a_plain_function_names_its_keys(run, command, keys):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"usage: python -m kedit {command}" in out
    assert all(key in out for key in keys)


def test_exporting_nothing_is_an_error_of_the_user(run):
    assert "--checkpoint nowhere: there is no such file" in error_of(
        run("export", "--checkpoint=nowhere", "--output=o")
    )


# --- a run from end to end


def test_fit_test_predict_and_validate_share_a_run(run):
    code, out, err = run(*FIT, "--test_after_fit", "true", "--trainer.enable_model_summary", "true")
    assert code == 0, err
    assert "TinyModule: 5 parameters, 5 of them trained" in out
    assert "FLOPs" not in out + err
    for line in ("infer the batch indices", "is not empty"):
        assert line not in out + err
    assert "test/error" in out
    assert "mean squared error" in out
    results = json.loads(Path("logs/tiny/results.json").read_text())
    assert set(results) == {"test/error", "test/weight"}
    saved = Path("checkpoints/tiny/config.yaml").read_text()
    assert saved == Path("logs/tiny/config.yaml").read_text()
    assert yaml.safe_load(saved)["model"]["init_args"]["activation"] == "relu"  # resolved

    Path("logs/tiny/results.json").unlink()
    code, out, err = run("test", "--config", "checkpoints/tiny/config.yaml")
    assert code == 0, err
    best = torch.load("checkpoints/tiny/last.ckpt", weights_only=True)["callbacks"]
    best = next(state["best_model_path"] for name, state in best.items() if name.startswith("ModelCheckpoint"))
    assert f"from checkpoints/tiny/{Path(best).name}" in out
    assert json.loads(Path("logs/tiny/results.json").read_text()) == results
    assert Path("checkpoints/tiny/config.yaml").read_text() == saved  # only fit saves it

    code, out, err = run("predict", "--config", "checkpoints/tiny/config.yaml")
    assert code == 0, err
    rows = [json.loads(line) for line in Path("logs/tiny/predictions.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == [0, 4, 8, 12]

    Path("empty").write_text("nothing to predict")
    code, out, err = run("predict", "--config", "checkpoints/tiny/config.yaml", "--data.path", "empty")
    assert code == 0, err
    assert "0 predictions written to logs/tiny/predictions.jsonl" in out
    assert Path("logs/tiny/predictions.jsonl").read_text() == ""

    code, out, err = run("validate", "--config", "checkpoints/tiny/config.yaml", "--ckpt_path", "last")
    assert code == 0, err
    assert len(re.findall(r"val/error\s+\d", out)) == 1
    assert "validation after" not in err
    assert "from checkpoints/tiny/last.ckpt" in out
    assert Path("checkpoints/tiny/config.yaml").read_text() == saved


def test_what_tensorboard_shows(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    assert run(*FIT, "--test_after_fit", "true")[0] == 0
    events = EventAccumulator("logs/tiny").Reload()
    scalars = set(events.Tags()["scalars"])
    assert scalars >= {
        "train/loss",
        "train/gradient_norm",
        "train/learning_rate",
        "train/target_tokens_per_second",
        "train/padding_share",
        "train/peak_memory_gib",
        "val/error",
        "test/error",
    }
    assert not {"hp_metric", "train/mfu"} & scalars  # a CPU's peak is not known
    assert [event.step for event in events.Scalars("train/loss")] == [1, 3, 5, 7, 9, 11]
    assert len(events.Scalars("val/error")) == 2
    assert events.Scalars("train/padding_share")[0].value == pytest.approx(0.2)
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["seed"].number_value == 5
    assert hparams["model.width"].number_value == 4
    assert hparams["model"].string_value == "tiny_command.TinyModule"
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    names = plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos
    assert {metric.name.tag for metric in names} == {"val/error", "test/error", "test/weight"}


def test_a_resumed_run_ends_like_an_uninterrupted_one_and_logs_each_step_once(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps = ("--checkpoint.every_n_train_steps", "5", "--checkpoint.save_top_k", "-1", "--checkpoint.monitor", "null")
    assert run(*FIT, *steps)[0] == 0
    whole = torch.load("checkpoints/tiny/last.ckpt", weights_only=True)["state_dict"]
    assert run(*FIT, *steps, "--run.name", "parts", "--trainer.max_steps", "9")[0] == 0
    Path("checkpoints/parts/last.ckpt").unlink()
    code, out, err = run(
        "fit", "--config", "checkpoints/parts/config.yaml", "--ckpt_path", "last", "--trainer.max_steps=-1"
    )
    assert code == 0, err
    assert "from checkpoints/parts/step=5.ckpt" in out
    parts = torch.load("checkpoints/parts/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())
    steps = [event.step for event in EventAccumulator("logs/parts").Reload().Scalars("train/loss")]
    assert steps == [1, 3, 5, 7, 9, 11]


# --- runs


def contents(*folders: str) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for folder in folders for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def test_a_folder_that_holds_a_run_is_left_alone(run):
    assert run(*FIT)[0] == 0
    before = contents("checkpoints", "logs")
    text = error_of(run(*FIT))
    assert "checkpoints/tiny already holds a run" in text
    assert "--ckpt_path last" in text
    assert "--run.name" in text
    assert contents("checkpoints", "logs") == before


def test_of_two_runs_that_begin_together_the_second_is_refused(run, monkeypatch):
    def begin_another(line):
        Path("checkpoints/tiny").mkdir(parents=True)
        Path("checkpoints/tiny/config.yaml").write_text("another's")

    monkeypatch.setattr("kedit.running.application.say", begin_another)
    assert "checkpoints/tiny: another run of that name has begun meanwhile" in error_of(run(*FIT))
    assert Path("checkpoints/tiny/config.yaml").read_text() == "another's"


def test_numbered_runs_take_the_next_number_and_others_the_newest(run):
    change(run__numbered=True)
    assert run(*FIT)[0] == 0
    code, out, _ = run(*FIT)
    assert code == 0
    assert "run tiny-2" in out
    assert yaml.safe_load(Path("checkpoints/tiny-2/config.yaml").read_text())["run"] == {
        "name": "tiny-2",
        "numbered": False,
        "checkpoints": "checkpoints",
        "logs": "logs",
    }
    code, out, _ = run("test", "--config", "tiny.yaml")
    assert code == 0
    assert "run tiny-2" in out


def test_a_run_that_fails_in_its_preparations_takes_no_name(run):
    change(data__init_args={"path": "points.txt"})
    text = error_of(run(*FIT))
    assert "points.txt: no such file" in text
    Path("points.txt").write_text("")
    assert "points.txt is empty, wanted one point per line" in error_of(run(*FIT))
    Path("points.txt").write_text("1")
    assert run(*FIT)[0] == 0


def test_a_name_that_leads_elsewhere_is_refused(run):
    for name in ("../evil", "/elsewhere/x", ".hidden"):
        assert "no folder name" in error_of(run(*FIT, "--run.name", name))


def test_last_starts_a_run_that_has_no_checkpoint_yet_and_never_touches_another_run(run):
    code, out, _ = run(*FIT, "--ckpt_path", "last")
    assert code == 0
    assert "starting at the beginning" in out
    assert run(*FIT, "--run.name", "other")[0] == 0
    text = error_of(run(*FIT, "--run.name", "other", "--ckpt_path", "checkpoints/tiny/last.ckpt"))
    assert "checkpoints/other already holds a run" in text
    code, out, _ = run(*FIT, "--run.name", "third", "--ckpt_path", "checkpoints/tiny/last.ckpt")
    assert code == 0
    assert "run third" in out


def test_incomplete_checkpoints_are_skipped_and_named(run):
    assert run(*FIT)[0] == 0
    whole = Path("checkpoints/tiny/last.ckpt").read_bytes()
    Path("checkpoints/tiny/later.ckpt").write_bytes(whole[: len(whole) // 2])
    Path("checkpoints/tiny/latest.ckpt").write_bytes(b"")
    now = time.time()
    os.utime("checkpoints/tiny/later.ckpt", (now + 5, now + 5))
    os.utime("checkpoints/tiny/latest.ckpt", (now + 9, now + 9))
    code, out, err = run("test", "--config", "tiny.yaml", "--ckpt_path", "last")
    assert code == 0, err
    assert "skipped checkpoints/tiny/latest.ckpt: 0 bytes" in out
    assert "skipped checkpoints/tiny/later.ckpt: cut off" in out
    assert "from checkpoints/tiny/last.ckpt" in out
    text = error_of(run("test", "--config", "tiny.yaml", "--ckpt_path", "later.ckpt"))
    assert "checkpoints/tiny/later.ckpt is incomplete" in text
    assert "newest complete one is checkpoints/tiny/last.ckpt" in text


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere.ckpt", "no such file"),
        ("https://example.org/a.ckpt", "wanted last, best or a local file"),
        ("s3://bucket/a.ckpt", "wanted last, best or a local file"),
        ("best", "no complete checkpoint in checkpoints/tiny"),
    ],
)
def test_a_checkpoint_that_is_not_there(run, path, words):
    assert words in error_of(run("test", "--config", "tiny.yaml", "--ckpt_path", path))


def test_a_checkpoint_of_another_architecture(run):
    assert run(*FIT)[0] == 0
    text = error_of(
        run("test", "--config", "tiny.yaml", "--ckpt_path", "last", "--model.width", "5", "--data.width", "5")
    )
    assert "checkpoints/tiny/last.ckpt does not fit" in text
    assert "model.weight" in text


def test_a_loss_that_is_not_finite_stops_the_run_before_a_checkpoint_is_written_from_it(run):
    change(model__init_args={"diverge_at": 8}, checkpoint__every_n_train_steps=1, checkpoint__save_on_exception=True)
    change_all = ("--checkpoint.monitor", "null", "--checkpoint.save_top_k", "-1")
    text = error_of(run(*FIT, *change_all))
    assert "the loss of step 8 is not finite" in text
    assert sorted(path.name for path in Path("checkpoints/tiny").glob("*.ckpt")) == [
        *sorted(["last.ckpt", *(f"step={step}.ckpt" for step in range(1, 8))])
    ]
    state = torch.load("checkpoints/tiny/last.ckpt", weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in state.values())


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_random_weights_are_not_judged_but_a_published_model_is(run, command):
    text = error_of(run(command, "--config", "tiny.yaml"))
    assert "no checkpoint in checkpoints/tiny: train first by `python -m kedit fit`" in text
    code, out, err = run(command, "--config", "tiny.yaml", "--model.backbone.name", "some/model")
    assert code == 0, err
    assert "taking some/model as it comes" in out


def test_files_that_are_no_checkpoints_of_a_run_are_named(run):
    torch.save({"weight": torch.zeros(1)}, "weights.ckpt")
    torch.save({"state_dict": Path("pickled")}, "pickled.ckpt")
    Path("plain.ckpt").write_bytes(pickle.dumps({"state_dict": {}}))
    for name, words in [
        ("weights", "holds no state_dict"),
        ("pickled", "holds objects other than tensors"),
        ("plain", "no checkpoint"),
    ]:
        text = error_of(run("test", "--config", "tiny.yaml", "--ckpt_path", f"{name}.ckpt"))
        assert f"{name}.ckpt" in text
        assert words in text
        assert "weights_only" not in text


def test_a_full_disk_is_told_in_a_line_and_leaves_the_checkpoint_before_it(run, monkeypatch):
    saved = torch.save
    written = []

    def save(state, file):
        saved(state, file)
        written.append(file)
        if len(written) > 1:
            raise RuntimeError("unexpected pos 64 vs 0") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", save)
    text = error_of(run(*FIT, "--checkpoint.save_last", "false"))
    assert re.search(r"no space for .*ckpt: .* MiB free .*the newest complete checkpoint is .*step=6.ckpt", text)


def test_a_disk_that_was_full_is_named_where_the_error_names_nothing(run, monkeypatch):
    import tiny_command

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")  # as a log's writer does in a thread of its own

    monkeypatch.setattr(tiny_command.TinyModule, "on_train_epoch_end", full)
    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 0 if "logs" in str(path) else 1 << 40))
    assert "no space for logs/tiny: 0 MiB free" in error_of(run(*FIT))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1 << 40))
    assert "no space for checkpoints/other: 1,048,576 MiB free" in error_of(run(*FIT, "--run.name", "other"))


def test_a_run_without_checkpoints_trains(run, place):
    code, _, err = run(*FIT, "--trainer.enable_checkpointing", "false")
    assert code == 0, err
    assert not list(place.rglob("*.ckpt"))
    assert "enable_checkpointing false" in error_of(run(*FIT, "--trainer.barebones", "true", "--run.name", "bare"))


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("callbacks", [{"class_path": "EarlyStopping", "init_args": {"monitor": "val/eror"}}],
         "trainer.callbacks: Early stopping conditioned on metric `val/eror`"),
        ("val_check_interval", 100, "trainer.val_check_interval: `val_check_interval` (100) must be less"),
    ],
    ids=["EarlyStopping", "val_check_interval"],
)  # fmt: skip
def test_what_lightning_says_of_a_configuration_is_told_in_a_few_lines(run, part, value, words):
    change(**{f"trainer__{part}": value})
    assert words in error_of(run(*FIT))


def test_weights_alone_are_not_gone_on_with(run):
    options = ("--checkpoint.save_weights_only", "true", "--checkpoint.save_last", "false")
    assert run(*FIT, "--trainer.max_epochs", "1", *options)[0] == 0
    assert "save_weights_only" in error_of(run(*FIT, *options, "--ckpt_path", "last"))


def test_a_run_begun_anew_where_only_its_log_is_left_starts_its_curves_anew(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run(*FIT)[0] == 0
    text = error_of(run(*FIT))
    assert "checkpoints/tiny already holds" in text
    shutil.rmtree("checkpoints")
    assert "logs/tiny already holds" in error_of(run(*FIT))
    Path("logs/tiny/config.yaml").unlink()
    assert run(*FIT)[0] == 0
    steps = [event.step for event in EventAccumulator("logs/tiny").Reload().Scalars("train/loss")]
    assert steps == [1, 3, 5, 7, 9, 11]


# --- LightningCLI's traps


def test_trap_a_checkpoint_does_not_change_the_configuration(run):
    assert run(*FIT)[0] == 0
    code, _, err = run(
        *FIT, "--ckpt_path", "checkpoints/tiny/last.ckpt", "--model.learning_rate=0.5", "--trainer.max_epochs=3"
    )
    assert code == 0, err
    saved = yaml.safe_load(Path("checkpoints/tiny/config.yaml").read_text())
    assert saved["model"]["init_args"]["learning_rate"] == 0.5
    state = torch.load("checkpoints/tiny/last.ckpt", weights_only=True)
    assert state["hyper_parameters"]["learning_rate"] == 0.5


def test_trap_several_configs_merge_and_callbacks_append(run):
    Path("overlay.yaml").write_text(
        "model:\n  init_args:\n    activation: tanh\n"
        "trainer:\n  callbacks+:\n    - class_path: lightning.pytorch.callbacks.ModelSummary\n"
    )
    change(trainer__callbacks=[{"class_path": "lightning.pytorch.callbacks.DeviceStatsMonitor"}])
    code, out, err = run(*FIT, "--config", "overlay.yaml", "--print_config")
    assert code == 0, err
    config = yaml.safe_load(out)
    assert config["model"]["init_args"] | {"width": 4, "activation": "tanh"} == config["model"]["init_args"]
    assert [c["class_path"].rsplit(".", 1)[-1] for c in config["trainer"]["callbacks"]] == [
        "DeviceStatsMonitor",
        "ModelSummary",
    ]


def test_trap_no_argument_is_linked_to_another(place):
    from kedit.editing.module import EditingModule
    from kedit.running.application import Application

    class Parsed(Application):
        def before_instantiate_classes(self):
            raise InterruptedError

    seen = []

    class Kept(Parsed):
        def parse_arguments(self, parser, args):
            super().parse_arguments(parser, args)
            seen.append(self._parser(self.command))

    with pytest.raises(InterruptedError):
        Kept(EditingModule, "fit", FIT[1:])
    assert not getattr(seen[0], "_links_group", None)


def test_trap_the_seed_is_one_number_and_is_kept(run):
    assert "seed_everything: wanted int, got 'True'" in error_of(run(*FIT, "--seed_everything", "true"))
    assert run(*FIT, "--seed_everything", "7")[0] == 0
    assert yaml.safe_load(Path("checkpoints/tiny/config.yaml").read_text())["seed_everything"] == 7


def test_trap_an_abbreviated_key_is_not_taken_for_another(run):
    text = error_of(run(*FIT, "--trainer.max_epoch", "3"))
    assert "unknown key trainer.max_epoch" in text
    assert "did you mean trainer.max_epochs?" in text


# --- errors


def yaml_with(old: str, new: str) -> None:
    assert old in CONFIG
    Path("tiny.yaml").write_text(CONFIG.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("max_epochs", "max_epoch", "unknown key trainer.max_epoch (tiny.yaml:12)\n  did you mean trainer.max_epochs?"),
        ("monitor:", "montior:", "unknown key checkpoint.montior (tiny.yaml:16)\n  did you mean checkpoint.monitor?"),
        ("model:", "modle:", "unknown key modle"),
        (
            "    width",
            "    widht",
            "unknown key model.widht of tiny_command.TinyModule (tiny.yaml:7)\n  did you mean width?",
        ),
        ("tiny_command.TinyModule", "tiny_command.TinyModul", "did you mean tiny_command.TinyModule?"),
        (
            "tiny_command.TinyModule",
            "kedit.editting.module.EditingModule",
            "did you mean kedit.editing.module.EditingModule?",
        ),
        (
            "tiny_command.TinyModule",
            "tiny_command.NotForUs",
            "model: tiny_command.NotForUs (tiny.yaml:5) is no EditingModule",
        ),
        ("width: 4", "width: wide", "model.width: wanted int, got 'wide' (tiny.yaml:7)"),
        (
            "width: 4",
            "activation: rellu",
            "model.activation: wanted one of relu, tanh, got 'rellu' (tiny.yaml:7)\n  did you mean relu?",
        ),
        ("max_epochs: 2", "max_epochs: ten", "trainer.max_epochs: wanted int or null, got 'ten' (tiny.yaml:12)"),
        ("width: 4", "width: 0", "model.width must be at least 1, not 0 (tiny.yaml:7)"),
        ("accelerator: cpu", "accelerator: qpu", "qpu"),
        ("  max_epochs: 2", "  max_epochs: [2", "tiny.yaml:13 is not YAML"),
        ("tiny_command.TinyModule", "os.system", "os.system (tiny.yaml:5) is not allowed in model"),
        ("tiny_command.TinyModule", "kedit.cli.os.system", "posix.system is not allowed in model"),
        ("tiny_command.TinyModule", "random_module.Class", "KEDIT_ALLOW=random_module"),
        ("seed_everything: 5", "seed_everything: -1", "seed_everything is -1: wanted a number from 0 to 4294967295"),
        ("width: 4", "learning_rate: -1.0", "TinyModule cannot be set up: Invalid learning rate: -1.0"),
        ("width: 4", "backbone: {nam: x}", "unknown key model.backbone.nam of tiny_command.TinyBackbone (tiny.yaml:7)"),
        (CONFIG, "", "--config tiny.yaml: wanted keys with values, as in `model: ...`, got nothing"),
        (CONFIG, "- a", "--config tiny.yaml: wanted keys with values, as in `model: ...`, got a list"),
    ],
)
def test_a_wrong_configuration_is_named_in_a_few_lines(run, old, new, words):
    yaml_with(old, new)
    assert words in error_of(run(*FIT))
    assert not Path("checkpoints").exists()


def test_a_configuration_in_a_folder_is_read_for_its_lines(run):
    yaml_with("width: 4", "width: wide")
    Path("deep").mkdir()
    Path("tiny.yaml").rename("deep/tiny.yaml")
    assert "got 'wide' (deep/tiny.yaml:7)" in error_of(run("fit", "--config", "deep/tiny.yaml"))
    Path("deep/tiny.yaml").write_text("")
    assert "--config deep/tiny.yaml: wanted keys" in error_of(run("fit", "--config", "deep/tiny.yaml"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fit", "--config", "tny.yaml"), "--config tny.yaml: there is no such file\n  did you mean tiny.yaml?"),
        (("fit", "--config", "nowhere/x.yaml"), "--config nowhere/x.yaml: there is no such file"),
        (("fit",), "missing: "),
        (("fit", "--config", "."), "--config .: is a folder, wanted a YAML file"),
        ((*FIT, "--model.backbone.nam", "x"), "unknown key model.backbone.nam of tiny_command.TinyBackbone"),
        ((*FIT, "--model.widht", "3"), "unknown key model.widht of tiny_command.TinyModule\n  did you mean width?"),
        ((*FIT, "--checkpoint.dirpath", "/tmp"), "unknown key checkpoint.dirpath"),
        ((*FIT, "--weights_only", "false"), "unknown key weights_only"),
        ((*FIT, "stray"), "'stray' is too much"),
        ((*FIT, "--config"), "expected one argument"),
    ],
)
def test_a_wrong_command_line_is_named_in_a_few_lines(run, arguments, words):
    assert words in error_of(run(*arguments))


@pytest.mark.parametrize(
    ("init_args", "words"),
    [
        (
            {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lrr": 0.1}}},
            "unknown key model.optimizer.lrr of torch.optim.AdamW\n  did you mean lr?",
        ),
        (
            {"optimizer": {"class_path": "torch.optim.AdmaW"}},
            "model.optimizer: unknown class torch.optim.AdmaW\n  did you mean torch.optim.AdamW?",
        ),
        (
            {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": "fast"}}},
            "model.optimizer.lr: wanted float, got 'fast'",
        ),
        (
            {"schedule": {"warmupp": 0.1}},
            "unknown key model.schedule.warmupp of kedit.lm.optim.Schedule\n  did you mean warmup?",
        ),
        ({"schedule": {"warmup": -1}}, "schedule.warmup is -1"),
    ],
)
def test_what_is_wrong_in_a_nested_part_is_named_with_its_place(run, init_args, words):
    Path("nested.yaml").write_text(
        yaml.safe_dump({"model": {"class_path": "kedit.editing.module.EditingModule", "init_args": init_args}})
    )
    config = Path("tiny.yaml").read_text().replace("tiny_command.TinyModule\n  init_args:\n    width: 4\n", "")
    Path("tiny.yaml").write_text(config.replace("model:\n  class_path: ", ""))
    text = error_of(run(*FIT, "--config", "nested.yaml"))
    assert words in re.sub(r" \(nested.yaml:\d+\)", "", text)


def test_a_configuration_that_is_not_utf8_is_named(run):
    Path("tiny.yaml").write_bytes("run: {name: caf\xe9}".encode("latin-1"))
    assert "tiny.yaml is not UTF-8 text" in error_of(run(*FIT))


def test_a_callable_in_a_configuration_is_not_run(run):
    change(
        trainer__callbacks=[
            {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"on_fit_start": "os.getcwd"}}
        ]
    )
    assert "os.getcwd (tiny.yaml:" in error_of(run(*FIT))


def test_our_own_errors_keep_their_traceback(run, monkeypatch):
    import tiny_command

    monkeypatch.setattr(tiny_command.TinyModule, "training_step", lambda *_: 1 / 0)
    code, _, err = run(*FIT)
    assert code == 1
    assert "Traceback" in err
    assert "ZeroDivisionError" in err


def test_debug_shows_the_traceback_of_a_users_error_too(run):
    change(data__init_args={"path": "points.txt"})
    code, _, err = run(*FIT, "--debug")
    assert code == 2
    assert "Traceback" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_run_that_is_stopped_from_outside_says_so_by_its_exit_code(place, number, code):
    program = (
        "import sys, tiny_command, kedit.cli\n"
        "tiny_command.TinyModule.on_train_start = lambda self: print('on', flush=True)\n"
        "sys.exit(kedit.cli.main(sys.argv[1:]))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", program, *FIT, "--trainer.max_epochs=100000", "--trainer.limit_val_batches=0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # a shell's background job ignores SIGINT, and so would what it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    while process.stdout.readline() != "on\n":
        assert process.poll() is None
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.strip().endswith("python -m kedit: interrupted") or number == signal.SIGTERM
    assert "Traceback" not in err
