"""Every configuration parses, and runs two steps on a tiny model of its architecture."""

import json
from pathlib import Path

import pytest
import yaml
from benchmarks.test_benchmark_ecbd import ecbd_record, inference_record
from conftest import ARCHITECTURES, tiny_causal

from kedit.cli import main
from kedit.lm.backbones import Backbone, load_seq2seq, load_tokenizer, save_skeleton

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
OVERLAYS = sorted((ROOT / "configs" / "hardware").glob("*.yaml"))


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory, world_corpus):
    folders = {}
    for family, architecture in (("bart", "bart"), ("t5", "t5-v1.1")):
        folder = tmp_path_factory.mktemp(f"model-{family}")
        tokenizer = load_tokenizer(Path(world_corpus[family]) / "tokenizer")
        model = load_seq2seq(Backbone(architecture=ARCHITECTURES[architecture]), tokenizer)
        model.save_pretrained(folder)
        save_skeleton(model, tokenizer, folder)
        folders[family] = str(folder)
    return folders


@pytest.fixture(scope="session")
def tiny_causal_models(tmp_path_factory, tokenizer_folders):
    """A folder for each family that the distill configurations name, and files of probes."""
    tokenizer = load_tokenizer(tokenizer_folders["bart"])
    folders = {}
    for family in ("gpt2", "gpt_neo", "llama"):
        folder = tmp_path_factory.mktemp(f"model-{family}")
        tiny_causal(family, len(tokenizer)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[family] = str(folder)
    files = tmp_path_factory.mktemp("probes")
    (files / "not_made.yaml").write_text("model: {init_args: {backbone: {made: null, name: named}}}")
    folders["not_made"] = str(files / "not_made.yaml")
    for name in ("ecbd", "popular", "inferences"):
        records = [
            inference_record(f"Storm {number}", ex_id=f"storm_dev_{number}")
            if name == "inferences"
            else ecbd_record(f"{name} {number}_{number}_0_0", f"{name} {number}")
            for number in range(3)
        ]
        (files / f"{name}.json").write_text("\n".join(map(json.dumps, records)))
        folders[name] = str(files / f"{name}.json")
    return folders


def tiny(config: dict, models: dict[str, str], corpora: dict[str, str]) -> list[str]:
    """Options that make a configuration small."""
    options = ["--trainer.max_steps", "2"]
    is_kilm = config["model"]["class_path"].endswith("KilmModule")
    return options + (tiny_kilm(config, models, corpora) if is_kilm else tiny_distill(config, models))


def tiny_distill(config: dict, models: dict[str, str]) -> list[str]:
    data, backbone = config["data"]["init_args"], "--model.init_args.backbone"
    name = config["model"]["init_args"]["backbone"].get("name", "gpt2")
    family = next(
        family for word, family in (("neo", "gpt_neo"), ("llama", "llama"), ("gpt2", "gpt2")) if word in name.lower()
    )
    options = [f"{backbone}.name", models[family], f"{backbone}.dtype", "float32"]
    if "made" in config["model"]["init_args"]["backbone"]:
        source = "--data.init_args.source.init_args"
        return ["--config", models["not_made"], *options, f"{source}.new", "6", f"{source}.validation", "2",
                "--trainer.max_epochs", "1", "--data.init_args.make.rounds", "1",
                # random weights say no name of themselves
                "--data.init_args.make.generator.init_args.start_with_name", "true"]  # fmt: skip
    source = "--data.init_args.source.init_args"
    probes = "ecbd" if data["source"]["class_path"].endswith("Ecbd") else "inferences"
    options += [f"{source}.file", models[probes]]
    if "specificity" in data["source"]["init_args"]:
        options += [f"{source}.specificity", models["popular"]]
    if data["protocol" if "protocol" in data else "sentences"] != data["sentences"]:
        # the whole of its stages, for they are judged when they end
        options += [
            "--trainer.max_steps",
            "-1",
            "--data.init_args.sentences",
            "1",
            "--model.init_args.baselines",
            "null",
        ]
    return options


def tiny_kilm(config: dict, models: dict[str, str], corpora: dict[str, str]) -> list[str]:
    data, model = config["data"]["init_args"], config["model"]["init_args"]
    options = ["--trainer.max_epochs", "-1", "--trainer.val_check_interval", "null",
               "--data.init_args.row_tokens", "128", "--data.init_args.evaluation.held_out", "20"]  # fmt: skip
    if name := model["backbone"].get("name"):
        family = "t5" if "t5" in name else "bart"
        options += ["--model.init_args.backbone.name", models[family], "--data.init_args.corpus", corpora[family]]
    else:
        wiki = "--data.init_args.make.wiki.init_args"
        options += [f"{wiki}.entities", "200", f"{wiki}.paragraphs", "2"]
    if data.get("batch_tokens"):
        options += ["--data.init_args.batch_tokens", "2048"]
    return options


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_two_steps(path, tmp_path, monkeypatch, tiny_models, tiny_causal_models, world_corpus):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    config = yaml.safe_load(path.read_text())
    arguments = ["--config", str(path), "--config", str(ROOT / "configs/hardware/cpu.yaml")]
    assert main(["fit", *arguments, *tiny(config, tiny_models | tiny_causal_models, world_corpus)]) == 0
    run = config["run"]["name"] + ("-1" if config["run"].get("numbered") else "")
    assert list((tmp_path / "checkpoints" / run).glob("*.ckpt"))
    assert (tmp_path / "checkpoints" / run / "backbone" / "config.json").exists()
    results = tmp_path / "logs" / run / "results.json"
    assert results.exists() == bool(config.get("test_after_fit"))
    if results.exists():
        assert all(key.startswith("test/") for key in json.loads(results.read_text()))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_overlays_parse_over_every_configuration(path, overlay, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(path), "--config", str(overlay), "--print_config"]) == 0
    merged = yaml.safe_load(capsys.readouterr().out)
    for key, value in yaml.safe_load(overlay.read_text())["trainer"].items():
        assert merged["trainer"][key] == value or isinstance(value, dict)


@pytest.mark.parametrize("path", CONFIGS + OVERLAYS, ids=lambda path: path.stem)
def test_the_first_comment_says_what_it_is(path):
    comment = path.read_text().split("\n")[0]
    assert comment.startswith("# ")
    assert len(comment) > 40
