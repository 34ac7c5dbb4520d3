"""Every configuration parses, and runs two steps on a tiny model of its architecture."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from benchmarks.test_benchmark_ecbd import ecbd_record, inference_record
from conftest import ARCHITECTURES, tiny_causal
from tiny_edits import PERSONS, TOWNS
from transformers import AutoConfig, AutoModel

from kedit.cli import main
from kedit.lm.backbones import Backbone, load_seq2seq, load_tokenizer, save_skeleton

ROOT = Path(__file__).parents[1]
EVERY = sorted((ROOT / "configs").glob("*.yaml"))
COMPARISONS = [path for path in EVERY if "contestants" in yaml.safe_load(path.read_text())]
CONFIGS = [path for path in EVERY if path not in COMPARISONS]
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


@pytest.fixture(scope="session")
def tiny_recipe_files(tmp_path_factory, tokenizer_folders):
    """Models that the recipe configurations name, an encoder, and a file for each of their sources."""
    tokenizer = load_tokenizer(tokenizer_folders["bart"])
    folders = {}
    for family in ("gpt2", "gptj", "llama", "qwen3"):
        folder = tmp_path_factory.mktemp(f"recipe-{family}")
        tiny_causal(family, len(tokenizer)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[family] = str(folder)
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = AutoConfig.for_model(
        "roberta", vocab_size=len(tokenizer), max_position_embeddings=130, type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id, **settings,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("encoder")
    AutoModel.from_config(encoder).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    folders["encoder"] = str(folder)

    files = tmp_path_factory.mktemp("edits")
    facts = [(number, person, TOWNS[number % 3]) for number, person in enumerate(PERSONS)]
    rows = {
        "CounterFact": [counterfact_row(*fact) for fact in facts],
        "Zsre": [zsre_row(*fact) for fact in facts],
        "RippleEdits": [ripple_row(*fact) for fact in facts],
    }
    for name, records in rows.items():
        (files / f"{name}.json").write_text(json.dumps(records))
        folders[name] = str(files / f"{name}.json")
    (files / "sentences.txt").write_text(" = Heron = \n\n The heron lives in the marshes of the north . \n")
    questions = [{"question": f"how far is it to {town}", "answer": ["a mile"]} for town in TOWNS]
    (files / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    return folders | {"Sentences": str(files / "sentences.txt"), "NaturalQuestions": str(files / "questions.jsonl")}


def counterfact_row(number: int, person: str, town: str) -> dict:
    return {"case_id": number, "prompt": f"{person} was born in", "target_new": town, "subject": person,
            "ground_truth": "Orsa", "rephrase_prompt": f"It rained. The birthplace of {person} is",
            "locality_prompt": "Elka Orsa plays the", "locality_ground_truth": "harp"}  # fmt: skip


def zsre_row(number: int, person: str, town: str) -> dict:
    return {"subject": person, "src": f"Where was {person} born?", "pred": "Orsa", "alt": town, "answers": ["Orsa"],
            "rephrase": f"What is {person}'s birthplace?", "loc": "nq question: who built the grey bridge",
            "loc_ans": "the Tellin company", "cond": f"Orsa >> {town} || Where was {person} born?"}  # fmt: skip


def ripple_row(number: int, person: str, town: str) -> dict:
    """As RECIPE's authors flatten it; not every row has probes of every kind."""
    kinds = {"Subject_Aliasing": [{"prompt": f"The painter {person} was born in", "targets": [town, f"{town} City"]}]}
    if number % 2:
        kinds["Relation_Specificity"] = [{"prompt": f"{person} plays the", "targets": ["harp"]}]
    return {"example_type": "popular", "prompt": f"{person} was born in", "target_new": town, "subject": person,
            "ground_truth": "Orsa", **kinds}  # fmt: skip


def tiny(config: dict, models: dict[str, str], corpora: dict[str, str]) -> list[str]:
    """Options that make a configuration small."""
    options = ["--trainer.max_steps", "2"]
    method = config["model"]["class_path"].split(".")[1]
    if method == "kilm":
        return options + tiny_kilm(config, models, corpora)
    return options + (tiny_recipe if method == "recipe" else tiny_distill)(config, models)


def tiny_recipe(config: dict, models: dict[str, str]) -> list[str]:
    """As many steps of few edits, one validation, and a test on a handful."""
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    options = ["--trainer.val_check_interval", "2", "--data.init_args.batch_edits", "3"]
    few = {"edits": 6, "validation_edits": 3, "validation_stored": 3, "immediate": 2, "retained": 3, "rival_edits": 2,
           "max_new_tokens": 3, "batch": 4}  # fmt: skip
    options += [word for name, count in few.items() for word in (f"--data.init_args.evaluation.{name}", str(count))]
    backbone = model["backbone"]
    if "made" in backbone:
        options += [word for part in ("backbone", "trunk")
                    for word in (f"--model.init_args.{part}.made.init_args.steps", "20")]  # fmt: skip
    else:
        family = next(family for family in ("gpt2", "gptj", "llama", "qwen3") if family in plain(backbone["name"]))
        options += ["--model.init_args.backbone.name", models[family], "--model.init_args.backbone.dtype", "float32",
                    "--model.init_args.trunk.name", models["encoder"]]  # fmt: skip
    for name, source in data.items():
        if isinstance(source, dict) and "class_path" in source:
            options += [f"--data.init_args.{name}", json.dumps(tiny_source(source, models))]
        elif isinstance(source, list):
            options += [f"--data.init_args.{name}", json.dumps([tiny_source(one, models) for one in source])]
    return options


def plain(name: str) -> str:
    return name.lower().replace("-", "")


def tiny_source(source: dict, models: dict[str, str]) -> dict:
    """A source with a file of ours, or with a few of its made-up edits and questions."""
    given, kind = dict(source.get("init_args", {})), source["class_path"].split(".")[-1]
    if "file" in given:
        given["file"] = models[kind]
    if "count" in given or kind.startswith("Registry"):
        given["count"] = 12
    return source | {"init_args": given}


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
def test_two_steps(path, tmp_path, monkeypatch, tiny_models, tiny_causal_models, tiny_recipe_files, world_corpus):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    for module in ("base_lm", "encoder", "reading_lm"):  # what a made model is worth is no matter here
        monkeypatch.setattr(f"kedit.world.{module}.ASKED", 8)
    config = yaml.safe_load(path.read_text())
    is_recipe = config["model"]["class_path"].endswith("RecipeModule")
    models = tiny_recipe_files if is_recipe else tiny_models | tiny_causal_models
    arguments = ["--config", str(path), "--config", str(ROOT / "configs/hardware/cpu.yaml")]
    assert main(["fit", *arguments, *tiny(config, models, world_corpus)]) == 0
    run = config["run"]["name"] + ("-1" if config["run"].get("numbered") else "")
    assert list((tmp_path / "checkpoints" / run).glob("*.ckpt"))
    left = "memory/memory.json" if is_recipe else "backbone/config.json"
    assert (tmp_path / "checkpoints" / run / left).exists()
    results = tmp_path / "logs" / run / "results.json"
    assert results.exists() == bool(config.get("test_after_fit"))
    if results.exists():
        found = json.loads(results.read_text())
        assert all(key.startswith("test/") for key in found)
        assert not is_recipe or {"test/reliability/free", "test/false_activation_rate"} <= found.keys()


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_a_comparison_parses_and_a_wrong_key_of_it_is_named(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in set(re.findall(r"(data/[\w./-]+)", path.read_text())):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(path.read_text().replace("max_new_tokens:", "max_new_token:"))
    main(["check", str(path), str(wrong)])
    told = [line for line in capsys.readouterr().out.splitlines() if re.search(r"\.yaml:\d+: ", line)]
    absent = [line for line in told if "base" in line or "run" in line]  # what must be trained first
    (named,) = [line for line in told if line not in absent]
    assert "max_new_token" in named
    assert "wrong.yaml" in named


def test_the_papers_form_that_a_comment_names(tmp_path, monkeypatch, tiny_recipe_files):
    monkeypatch.chdir(tmp_path)
    path = ROOT / "configs" / "recipe_gptj_6b_zsre.yaml"
    config = yaml.safe_load(path.read_text())
    arguments = ["--config", str(path), "--config", str(ROOT / "configs/hardware/cpu.yaml")]
    for word in ("reference true", "tokens 3", "trunk_share 1"):
        arguments += [f"--model.init_args.{word.split()[0]}", word.split()[1]]
    for word in ("negatives 0", "unrelated_queries 0"):
        assert word in path.read_text()
        arguments += [f"--data.init_args.{word.split()[0]}", word.split()[1]]
    arguments += ["--model.init_args.optimizer.init_args.lr", "1e-5", "--model.init_args.key_width", "16"]
    assert main(["fit", *arguments, *tiny_recipe(config, tiny_recipe_files), "--trainer.max_steps", "2"]) == 0
    run = tmp_path / "checkpoints" / config["run"]["name"]
    written = json.loads((run / "memory" / "memory.json").read_text())
    assert written["reference"] is True
    assert written["sizes"]["tokens"] == 3


HARDWARE = ROOT / "configs" / "hardware"
LAID = {"cpu": ["cpu"], "one_gpu": ["one_gpu"], "node8": ["node8"], "nodes": ["nodes"], "ddp": ["node8", "ddp"],
        "zero3": ["nodes", "zero3"]}  # fmt: skip
"""Each overlay, with what it is laid over."""


def test_every_overlay_is_tried():
    assert sorted(LAID) == [path.stem for path in OVERLAYS]


ONE_OF_EACH = ("kilm_large", "distill_llama2_7b_ecbd", "recipe_llama2_7b_zsre")
PAIRS = [
    (path, overlay)
    for number, path in enumerate(CONFIGS)
    for turn, overlay in enumerate(LAID)
    if path.stem in ONE_OF_EACH or turn == number % len(LAID)
]
"""Every configuration with an overlay, every overlay with each method."""


@pytest.mark.parametrize(("path", "overlay"), PAIRS, ids=lambda value: getattr(value, "stem", value))
def test_overlays_parse_over_every_configuration(path, overlay, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [path, *(HARDWARE / f"{name}.yaml" for name in LAID[overlay])]
    assert main(["fit", *(word for file in files for word in ("--config", str(file))), "--print_config"]) == 0
    merged, given = yaml.safe_load(capsys.readouterr().out)["trainer"], yaml.safe_load(path.read_text())["trainer"]
    for file in files[1:]:
        for key, value in yaml.safe_load(file.read_text())["trainer"].items():
            if file == files[-1] and isinstance(value, dict):
                assert merged[key]["class_path"] == value["class_path"]
                assert value["init_args"].items() <= merged[key]["init_args"].items()
            elif key != "strategy":
                assert merged[key] == value
    # how many batches make a step depends on the method: RECIPE's and distillation's may be too small for many
    assert merged["accumulate_grad_batches"] == given.get("accumulate_grad_batches", 1)


def test_the_commands_of_the_hardware_page_parse(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    page = (HARDWARE / "README.md").read_text().replace("\\\n", " ").replace("$SLURM_NNODES", "4")
    lines = [line for line in page.splitlines() if "kedit fit --config" in line and not line.startswith("One node")]
    assert len(lines) == 4
    for line in lines:
        words = shlex.split(line)
        assert main([*words[words.index("fit") :], "--print_config"]) == 0
        merged = yaml.safe_load(capsys.readouterr().out)["trainer"]
        if merged["devices"] == 8:
            # kilm_large's 64 parts of a step
            assert merged["devices"] * merged["num_nodes"] * merged["accumulate_grad_batches"] == 64


@pytest.mark.parametrize("path", CONFIGS + OVERLAYS, ids=lambda path: path.stem)
def test_the_first_comment_says_what_it_is(path):
    comment = path.read_text().split("\n")[0]
    assert comment.startswith("# ")
    assert len(comment) > 40
