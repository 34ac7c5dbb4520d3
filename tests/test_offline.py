"""Models where no hub is reached: a local folder, a cache that one process has filled, what is said without them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_causal
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from transformers.utils import hub

from kedit.cli import main
from kedit.distill import DistillModule
from kedit.editing import module as editing_module
from kedit.kilm import KilmModule
from kedit.lm import backbones
from kedit.lm.backbones import Backbone, MadeModel, fetch, load_causal, load_tokenizer
from kedit.recipe import RecipeModule

NAME = "somebody/small"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_folders):
    """A model in several files, with its tokenizer."""
    folder = tmp_path_factory.mktemp("small")
    tokenizer = load_tokenizer(tokenizer_folders["bart"])
    tiny_causal("gpt2", len(tokenizer)).save_pretrained(folder, max_shard_size="40KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch, folder):
    """The hub client's cache as a download leaves it, and no network."""
    cache = tmp_path / "cache"
    repository = cache / f"models--{NAME.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    shutil.copytree(folder, repository / "snapshots" / REVISION)
    monkeypatch.setattr(backbones.constants, "HF_HUB_OFFLINE", True)
    for place in (backbones.constants, hub.constants):
        monkeypatch.setattr(place, "HF_HUB_CACHE", str(cache))
    return repository / "snapshots" / REVISION


def test_a_filled_cache_is_enough(cache, folder):
    fetch(Backbone(name=NAME))
    loaded = load_causal(Backbone(name=NAME), load_tokenizer(NAME))
    other = load_causal(Backbone(name=str(folder)), load_tokenizer(folder))
    assert all(torch.equal(one, two) for one, two in zip(loaded.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    "lacking", ["config.json", "tokenizer.json", "model.safetensors.index.json", "model-00002-of-*"]
)
def test_what_is_not_in_the_cache_is_asked_for_before_training(cache, lacking):
    for file in cache.glob(lacking):
        file.unlink()
    with pytest.raises(OSError, match=f"{NAME}: ") as raised:
        fetch(Backbone(name=NAME))
    assert "\n" not in str(raised.value)
    assert f"hf download {NAME} --local-dir FOLDER" in str(raised.value)


def test_folders_and_made_models_are_not_fetched(cache, folder, monkeypatch):
    class Made(MadeModel):
        made = 0

        def make(self) -> Path:
            self.made += 1
            return folder

    monkeypatch.setattr(backbones, "_load", lambda *_, **__: pytest.fail("nothing is to be loaded"))
    fetch(Backbone(name=str(folder)))
    fetch(Backbone(architecture={"model_type": "bart"}))
    fetch(Backbone(made=(made := Made())))
    assert made.made == 1  # here, by one process: the others find it


@pytest.mark.parametrize("kind", [KilmModule, RecipeModule, DistillModule])
def test_every_method_fetches_all_its_models_in_prepare_data(kind, monkeypatch):
    fetched = []
    monkeypatch.setattr(editing_module, "fetch", lambda backbone: fetched.append(backbone.name))
    given = {"trunk": Backbone(name="an/encoder")} if kind is RecipeModule else {}
    made = kind(Backbone(name=NAME), **given)
    assert is_overridden("prepare_data", made, LightningModule)  # which Lightning calls on one process of each node
    assert made.prepare_data_per_node
    made.prepare_data()
    assert sorted(fetched) == sorted([NAME, *(["an/encoder"] if given else [])])


def test_a_hub_model_is_refused_in_one_line_where_there_is_no_hub(tmp_path, monkeypatch, capsys, cache):
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(cache)
    (tmp_path / "facts.jsonl").write_text(
        json.dumps({"id": "1", "name": "Orsa", "definition": "Orsa is a harbour town."}) + "\n"
    )
    config = f"""
run: {{name: offline}}
model:
  class_path: kedit.distill.DistillModule
  init_args: {{backbone: {{name: {NAME}}}}}
data:
  class_path: kedit.distill.DistillData
  init_args: {{facts: facts.jsonl, transfer: nowhere}}
trainer: {{accelerator: cpu, max_epochs: 1}}
"""
    (tmp_path / "offline.yaml").write_text(config)
    assert main(["fit", "--config", "offline.yaml"]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(said) == 1
    assert NAME in said[0]
    assert "hf download" in said[0]


def test_a_run_on_a_local_folder_needs_no_hub(monkeypatch, folder):
    monkeypatch.setattr(backbones.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(backbones.socket, "create_connection", lambda *_, **__: pytest.fail("the hub was asked"))
    backbone = Backbone(name=str(folder))
    fetch(backbone)
    assert load_causal(backbone, load_tokenizer(folder)).config.model_type == "gpt2"
