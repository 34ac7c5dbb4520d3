"""Hostile configurations, checkpoints, model folders and texts: none runs code, none writes outside the run's folders.

Code that is run leaves a file `ran`; the folder `outside` stands for all that a run has no business with.
"""

import bz2
import json
import os
import pickle
import sys
from pathlib import Path

import lightning.pytorch  # noqa: F401  its logger keeps the stderr it finds when it is imported
import numpy as np
import pytest
import torch
import yaml
from conftest import tiny_causal

from kedit.cli import main
from kedit.editing.sources import DataError
from kedit.kilm import wikipedia
from kedit.kilm.corpus import Corpus
from kedit.lm.adapter_files import read_config
from kedit.lm.backbones import Backbone, add_tokens, load_causal, load_config, load_tokenizer
from kedit.lm.text import encode
from kedit.lm.tokenizers import train_tokenizer
from kedit.recipe.asking import Asking
from kedit.running.errors import told
from kedit.running.parsing import _module, _parameters

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

EVIL = """
from pathlib import Path
Path({ran!r}).write_text("imported")
def run(*arguments, **more):
    Path({ran!r}).write_text("called")
class Class:
    def __init__(self, *arguments, **more):
        run()
"""
TINY = {
    "seed_everything": 5,
    "run": {"name": "tiny"},
    "model": {"class_path": "tiny_command.TinyModule"},
    "data": {"class_path": "tiny_command.TinyData"},
    "trainer": {"accelerator": "cpu", "max_steps": 1, "limit_val_batches": 0, "enable_model_summary": False},
    "checkpoint": {"save_last": True},
}


class Runs:
    """Pickled code."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self):
        return os.system, (f"touch {self.ran}",)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, from which Python imports as it does with `python -m`, with an evil module in it."""
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "outside").mkdir()
    (work / "evil.py").write_text(EVIL.format(ran=str(tmp_path / "ran")))
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(work)
    monkeypatch.setenv("KEDIT_ALLOW", "tiny_command")
    sys.modules.pop("evil", None)  # or it would not run again
    yield tmp_path
    assert not (tmp_path / "ran").exists()
    assert not list((tmp_path / "outside").iterdir())
    assert {path.name for path in tmp_path.iterdir()} <= {"work", "outside"}


def error_of(capsys, *arguments: str) -> str:
    capsys.readouterr()
    code = main(arguments)
    stderr = capsys.readouterr().err
    assert code == 2, stderr
    text = stderr[stderr.index("python -m kedit") :]
    assert len(text.strip().splitlines()) <= 3, text
    return text


def config(**parts: object) -> dict:
    """TINY with other values under keys with `__` for nesting."""
    changed = json.loads(json.dumps(TINY))
    for key, value in parts.items():
        *path, last = key.split("__")
        part = changed
        for name in path:
            part = part.setdefault(name, {})
        part[last] = value
    return changed


def of(class_path: str, **init_args: object) -> dict:
    return {"class_path": class_path} | ({"init_args": init_args} if init_args else {})


def call(function: str, when: str = "on_fit_start") -> dict:
    return {"trainer__callbacks": [of("lightning.pytorch.callbacks.LambdaCallback", **{when: function})]}


DENIED = {
    "model": {"model": of("evil.Class")},
    "data": {"data": of("evil.Class")},
    "callback": {"trainer__callbacks": [of("evil.Class")]},
    "logger": {"trainer__logger": of("evil.Class")},
    "strategy": {"trainer__strategy": of("evil.Class")},
    "profiler": {"trainer__profiler": of("evil.Class")},
    "plugin": {"trainer__plugins": [of("evil.Class")]},
    "optimizer": {"model": of("kedit.editing.module.EditingModule", optimizer=of("evil.Class"))},
    "hub": {"model": of("kedit.editing.module.EditingModule", optimizer=of("torch.hub.load", repo_or_dir="."))},
    "torch.load": {"model": of("kedit.editing.module.EditingModule", optimizer=of("torch.load", f="x.pt"))},
    "os.system": {"model": of("os.system", command="touch ../ran")},
    "alias": {"model": of("kedit.cli.os.system", command="touch ../ran")},
    "subprocess": {"model": of("subprocess.Popen", args="touch ../ran")},
    "callable": call("evil.run"),
    "callable os.system": call("os.system", "setup"),
    "callable eval": call("builtins.eval"),
    "callable exec": call("builtins.exec"),
    "callable subprocess": call("subprocess.check_output"),
    "callable alias": call("kedit.running.export.shutil.rmtree"),
    "jsonargparse": call("jsonargparse.set_parsing_settings"),
}


@pytest.mark.parametrize("case", DENIED)
def test_a_class_or_callable_from_elsewhere_is_not_even_imported(place, capsys, case):
    Path("tiny.yaml").write_text(yaml.safe_dump(config(**DENIED[case])))
    assert "is not allowed in" in error_of(capsys, "fit", "--config", "tiny.yaml")


@pytest.mark.parametrize(
    "line",
    [
        "seed_everything: !!python/object/apply:os.system ['touch ../ran']",
        "model: !!python/object/new:evil.Class {}",
        "run: {name: !!python/name:evil.run ''}",
        "model: !!python/module:evil ''",
        "model: {class_path: !!python/object/apply:evil.run []}",
    ],
)
def test_a_yaml_tag_makes_no_object(place, capsys, line):
    Path("tiny.yaml").write_text(f"{line}\n")
    assert "could not determine a constructor" in error_of(capsys, "fit", "--config", "tiny.yaml")


@pytest.mark.parametrize(
    "value",
    [
        "given class_path 'evil.Class': No module named x",
        "path evil.Class does not correspond to a subclass",
        "Expected a dot import path string: evil.Class",
        "Problem with given class_path 'evil.Class':\n  does not accept option 'x'",
        "class: module x Got value: Namespace(class_path='evil.Class'",
    ],
)
def test_a_value_that_looks_like_a_message_of_the_parser_imports_nothing(place, capsys, value):
    Path("tiny.yaml").write_text(yaml.safe_dump(config(trainer__max_epochs=value)))
    error_of(capsys, "fit", "--config", "tiny.yaml")


def test_what_explains_an_error_imports_only_what_a_configuration_may_name(place):
    for name in ("evil", "os", "keditor", "torch", "torch.optimum"):
        with pytest.raises(ImportError, match="may not be imported"):
            _module(name)
    assert _parameters("evil.Class") == []
    assert _module("kedit.cli").__name__ == "kedit.cli"


def test_classes_of_ones_own_are_allowed_by_a_flag_and_not_by_the_configuration(place, capsys, monkeypatch):
    Path("plugin.py").write_text("from tiny_command import TinyModule\nclass Own(TinyModule): ...\n")
    monkeypatch.setenv("KEDIT_ALLOW", "")
    monkeypatch.delenv("KEDIT_ALLOW")
    Path("tiny.yaml").write_text(yaml.safe_dump(config(model=of("plugin.Own"))))
    assert "--allow plugin" in error_of(capsys, "fit", "--config", "tiny.yaml")
    Path("self.yaml").write_text(yaml.safe_dump(config(model=of("plugin.Own"), allow="plugin")))
    error_of(capsys, "fit", "--config", "self.yaml")
    for wrong in ("*", "no-package", "jsonargparse", "os; evil"):
        monkeypatch.setenv("KEDIT_ALLOW", "")
        text = error_of(capsys, "fit", f"--allow={wrong}", "--config", "tiny.yaml")
        assert f"--allow {wrong}: wanted the name of a package" in text
    monkeypatch.setenv("KEDIT_ALLOW", "")
    assert "wanted the name of a package" in error_of(capsys, "fit", "--config", "tiny.yaml", "--allow")
    monkeypatch.setenv("KEDIT_ALLOW", "")
    assert main(["fit", "--config", "tiny.yaml", "--allow", "plugin", "--allow=tiny_command"]) == 0


# --- where a run writes

WRITING = {
    "filename": {"checkpoint__filename": "../../../outside/{step}"},
    "absolute filename": {"checkpoint__filename": "OUTSIDE/{step}"},
    "callback's folder": {
        "trainer__callbacks": [of("lightning.pytorch.callbacks.ModelCheckpoint", dirpath="../outside")]
    },
    "callback's file": {
        "trainer__callbacks": [of("lightning.pytorch.callbacks.ModelCheckpoint", filename="../../../outside/x")]
    },
    "logger's folder": {"trainer__logger": of("lightning.pytorch.loggers.CSVLogger", save_dir="../outside")},
    "logger's name": {
        "trainer__logger": of("lightning.pytorch.loggers.CSVLogger", save_dir="logs", name="../../outside")
    },
    "logger's version": {
        "trainer__logger": [of("lightning.pytorch.loggers.CSVLogger", save_dir="logs", version="../../../outside")]
    },
    "profiler's folder": {
        "trainer__profiler": of("lightning.pytorch.profilers.SimpleProfiler", dirpath="OUTSIDE", filename="x")
    },
    "root": {"trainer__default_root_dir": "../outside"},
    "link": {"trainer__logger": of("lightning.pytorch.loggers.CSVLogger", save_dir="logs/link")},
    "address": {
        "trainer__callbacks": [of("lightning.pytorch.callbacks.ModelCheckpoint", dirpath="s3://somewhere/else")]
    },
    "run's name": {"run__name": "../../outside/run"},
    "run's absolute name": {"run__name": "OUTSIDE/run"},
    "run's name is a folder up": {"run__name": ".."},
}


@pytest.mark.parametrize("case", WRITING)
def test_nothing_is_written_outside_the_runs_folders(place, capsys, case):
    Path("logs").mkdir()
    Path("logs/link").symlink_to(place / "outside")
    text = yaml.safe_dump(config(**WRITING[case])).replace("OUTSIDE", str(place / "outside"))
    Path("tiny.yaml").write_text(text)
    assert "wanted a" in error_of(capsys, "fit", "--config", "tiny.yaml").replace("use letters", "wanted a")
    assert not Path("checkpoints").exists()


def test_folders_within_the_runs_are_as_good_as_ever(place):
    logger = of("lightning.pytorch.loggers.CSVLogger", save_dir="logs", name="tiny", version="")
    parts = {"trainer__logger": logger, "trainer__default_root_dir": "checkpoints", "checkpoint__filename": "a/{step}"}
    Path("tiny.yaml").write_text(yaml.safe_dump(config(**parts)))
    assert main(["fit", "--config", "tiny.yaml"]) == 0


# --- checkpoints


@pytest.mark.parametrize(
    "arguments",
    [
        ("test", "--config", "tiny.yaml", "--ckpt_path", "https://example.invalid/evil.ckpt"),
        ("fit", "--config", "tiny.yaml", "--ckpt_path", "s3://bucket/evil.ckpt"),
        ("test", "--config", "tiny.yaml", "--config", "url.yaml"),
        ("export", "--checkpoint", "https://example.invalid/evil.ckpt", "--output", "exported"),
        ("ask", "--run", "https://example.invalid/run", "Who?"),
        ("fit", "--config", "https://example.invalid/evil.yaml"),
    ],
)
def test_an_address_is_neither_a_checkpoint_nor_a_configuration(place, capsys, arguments):
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    Path("url.yaml").write_text("ckpt_path: http://example.invalid/evil.ckpt")
    text = error_of(capsys, *arguments)
    assert "example.invalid" in text or "bucket" in text


@pytest.mark.parametrize("command", ["fit", "test", "export"])
@pytest.mark.parametrize("kind", ["pickle", "state", "optimizer", "folder"])
def test_code_in_a_checkpoint_is_not_run(place, capsys, command, kind):
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    ran, file = Runs(place / "ran"), Path("evil.ckpt")
    if kind == "pickle":
        file.write_bytes(pickle.dumps(ran))
    elif kind == "folder":
        (file / "checkpoint").mkdir(parents=True)
        (file / "latest").write_text("checkpoint")
        for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
            torch.save({"module": ran}, file / "checkpoint" / name)
    else:
        torch.save({"state_dict": ran if kind == "state" else {}, "optimizer_states": [ran]}, file)
    if command == "export":
        error_of(capsys, "export", "--checkpoint", str(file), "--output", "exported")
    else:
        error_of(capsys, command, "--config", "tiny.yaml", "--ckpt_path", str(file))


@pytest.mark.parametrize("shard", ["model", "optimizer"])
def test_code_in_one_of_deepspeeds_shards_is_not_run(place, capsys, shard):
    from kedit.running.shards import FORCE

    folder = Path("evil.ckpt/checkpoint")
    folder.mkdir(parents=True)
    (folder.parent / "latest").write_text("checkpoint")
    ran = Runs(place / "ran")
    model = {"module": {}, "state_dict": {}, "buffer_names": [], "param_shapes": [], "shared_params": {}}
    torch.save(model | ({"more": ran} if shard == "model" else {}), folder / "mp_rank_00_model_states.pt")
    states = {"optimizer_state_dict": ran if shard == "optimizer" else {}}
    torch.save(states, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    Path("backbone").mkdir()
    Path("backbone/config.json").write_text("{}")
    text = error_of(capsys, "export", "--checkpoint", "evil.ckpt", "--output", "exported")
    assert "evil.ckpt is none of a run: it holds objects other than tensors" in text
    assert FORCE not in os.environ


def test_code_in_the_newest_checkpoint_is_not_run_by_going_on(place, capsys):
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    assert main(["fit", "--config", "tiny.yaml"]) == 0
    torch.save({"state_dict": Runs(place / "ran")}, "checkpoints/tiny/last.ckpt")
    error_of(capsys, "test", "--config", "tiny.yaml")


# --- model folders


@pytest.fixture
def model_folder(place):
    """A small GPT-2 with a file of code beside it."""
    folder = Path("model")
    tokenizer = train_tokenizer(["A text."], 300)
    tiny_causal("gpt2", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "evil.py").write_text(Path("evil.py").read_text())
    return folder


def change(file: Path, **settings: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


CODE = {"AutoConfig": "evil.Class", "AutoModelForCausalLM": "evil.Class", "AutoTokenizer": ["evil.Class", "evil.Class"]}


def test_code_that_comes_with_a_model_is_not_run(model_folder):
    change(model_folder / "config.json", auto_map=CODE)
    change(model_folder / "tokenizer_config.json", auto_map=CODE, tokenizer_class="Class")
    tokenizer = load_tokenizer(str(model_folder))
    assert load_causal(Backbone(name=str(model_folder)), tokenizer).config.model_type == "gpt2"
    change(model_folder / "config.json", auto_map=CODE, model_type="evil")
    with pytest.raises((OSError, ValueError)) as caught:
        load_config(Backbone(name=str(model_folder)))
    assert told(caught.value) is not None


@pytest.mark.parametrize(
    ("key", "value"),
    [("trust_remote_code", True), ("auto_map", CODE), ("code_revision", "main"), ("attn_implementation", "evil/code")],
)
def test_a_configuration_cannot_ask_for_code_that_comes_with_a_model(model_folder, key, value):
    change(model_folder / "config.json", auto_map=CODE, model_type="evil")
    with pytest.raises(ValueError, match=rf"architecture\.{key}: code that comes with a model is not run"):
        Backbone(name=str(model_folder), architecture={key: value})


def test_attention_is_not_fetched_from_a_hub(place):
    with pytest.raises(ValueError, match="attention is kernels-community/evil, wanted one of sdpa, eager"):
        Backbone(name="gpt2", attention="kernels-community/evil")


def test_pickled_weights_run_no_code(model_folder, place):
    (model_folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Runs(place / "ran")}, model_folder / "pytorch_model.bin")
    with pytest.raises((OSError, pickle.UnpicklingError)):
        load_causal(Backbone(name=str(model_folder)), load_tokenizer(str(model_folder)))


def test_an_adapters_description_names_no_module(place):
    settings = {"peft_type": "LORA", "r": 4, "megatron_config": {"a": 1}, "megatron_core": "evil"}
    Path("adapter_config.json").write_text(json.dumps(settings | {"auto_mapping": {"parent_library": "evil"}}))
    config = read_config(".")
    assert config.r == 4
    assert config.megatron_config is None
    assert config.megatron_core != "evil"
    assert config.auto_mapping is None


# --- data


@pytest.mark.parametrize("name", ["tokens", "mentions", "title_offsets"])
def test_pickled_arrays_of_a_corpus_run_no_code(place, world_corpus, name):
    folder = Path("corpus")
    folder.mkdir()
    for file in Path(world_corpus["bart"]).iterdir():
        (folder / file.name).symlink_to(file)
    (folder / f"{name}.npy").unlink()
    np.save(folder / f"{name}.npy", np.array([Runs(place / "ran")] * 9, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=rf"the corpus in corpus is damaged: {name}\.npy"):
        Corpus(folder)


HEAD = b'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/">'


def read(file: Path) -> list[wikipedia.Page]:
    return [page for part in wikipedia.split(file, 1 << 20) for page in wikipedia.pages(part)]


def test_a_bomb_is_unpacked_piece_by_piece_and_no_further_than_a_page_goes(place, monkeypatch):
    monkeypatch.setattr(wikipedia, "PAGE", 1 << 24)
    bomb = bz2.compress(HEAD + b"<page><title>" + b"a" * (1 << 27))
    assert len(bomb) < 2000
    Path("bomb.xml.bz2").write_bytes(bomb)
    sizes = []
    part = wikipedia.split(Path("bomb.xml.bz2"), 1 << 20)[0]
    pieces = wikipedia._blocks(part, lambda count: None, wikipedia._Place(0))
    sizes = [len(piece) for piece, _ in zip(pieces, range(5), strict=False)]
    assert max(sizes) <= wikipedia.UNPACKED
    with pytest.raises(DataError, match=r"bomb\.xml\.bz2: a page of more than 16 MiB"):
        read(Path("bomb.xml.bz2"))


def test_entities_of_a_dump_neither_multiply_nor_read_files(place):
    Path("secret").write_text("secret")
    laughs = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
    for name, inner, use in [
        ("laughs", f'<!ENTITY a0 "ha">{laughs}', "&a11;"),
        ("reads", '<!ENTITY x SYSTEM "secret">', "&x;"),
    ]:
        text = (
            f"<?xml version='1.0'?><!DOCTYPE m [{inner}]>{HEAD.decode()}<page><title>{use}</title></page></mediawiki>"
        )
        Path(f"{name}.xml").write_text(text)
        with pytest.raises(DataError, match=rf"{name}\.xml: broken XML"):
            read(Path(f"{name}.xml"))


@pytest.mark.parametrize(
    ("name", "head"), [("a.tar", b"../../x\0"), ("a.zip", b"PK\3\4"), ("a.7z", b"7z\xbc\xaf"), ("a.gz", b"\x1f\x8b")]
)
def test_archives_are_not_unpacked(place, name, head):
    Path(name).write_bytes(head + b"\0" * 600)
    with pytest.raises(DataError, match="no Wikipedia dump"):
        read(Path(name))


SPECIAL = ["</s>", "<s>", "<mask>", "<pad>", "<unk>", "<ent>", "</ent_desc>", "<sep>", "<extra_id_0>", "<|endoftext|>"]


@pytest.mark.parametrize("token", SPECIAL)
def test_a_special_token_in_a_text_is_plain_text(place, token):
    tokenizer = train_tokenizer(["A text of a few words, and more."], 400, sentinels=2)
    special = set(add_tokens(tokenizer, SPECIAL).values())
    text = f"Velmar {token} is{token}"
    (encoded,) = encode(tokenizer, [text])
    assert not special & set(encoded.ids.tolist())
    assert tokenizer.decode(encoded.ids) == text
    asking = Asking(tokenizer)
    (asked,) = asking.read([f"Who {token}"], [f"Maro {token}."])
    assert not special & {*asked.ids.tolist(), *asked.targets.tolist()}
    assert not special & set(asking.prompt_ids([text])[0])


def test_a_chat_prompt_with_the_templates_own_tokens_is_refused(place):
    tokenizer = train_tokenizer(["A text."], 300)
    tokenizer.chat_template = "<s>{{ messages[0]['content'] }}</s>"
    asking = Asking(tokenizer, chat=True)
    assert asking.prompt_ids(["Who?"])[0][0] == tokenizer.bos_token_id
    with pytest.raises(DataError, match="prompt 1 holds </s>, which the chat template would take for its own"):
        asking.prompt_ids(["Who?", "a </s> b"])
