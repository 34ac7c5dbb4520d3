"""Whole runs by the command line: every protocol, its results, the checkpoint asked again, exports, and bad input."""

import json
import os
from pathlib import Path

import pytest
import tiny_facts
import torch
import yaml
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from kedit.cli import main

FORMS = {
    "joint-lora": {"lora": {"rank": 2}, "max_epochs": 8, "lr": 0.01,
                   "baselines": {"learning_rates": [0.003, 0.001], "passes": 2}},
    "joint-full": {"max_epochs": 2, "regularisation": {"text": 1, "swapped": 1, "max_new_tokens": 6}},
    "independent-lora": {"lora": {"rank": 2}, "protocol": {"edits": "independent", "passes": 2},
                         "baselines": {"ways": ["finetune_last", "finetune_transfer"], "learning_rates": [0.001],
                                       "passes": 1}},
    "independent-full": {"protocol": {"edits": "independent", "group": 3}},
    "sequential-lora": {"lora": {"rank": 2}, "protocol": {"edits": "sequential", "passes": 2},
                        "schedule": {"shape": "linear"}},
    "reference": {"protocol": {"edits": "independent", "reference": True, "repeats": 2}, "positions": "all"},
}  # fmt: skip


def config(
    name,
    lora=None,
    baselines=None,
    architecture=None,
    max_epochs=1,
    lr=0.003,
    eps=1e-8,
    schedule=None,
    trainer=None,
    checkpoint=None,
    **data,
):
    given = {"source": {"class_path": "tiny_facts.TinyFacts"}} if "facts" not in data else {}
    model = {
        "backbone": {"name": tiny_facts.base(), "architecture": architecture},
        "lora": lora,
        "baselines": baselines,
        "schedule": schedule,
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr, "eps": eps}},
    }
    whole = {
        "seed_everything": 1,
        "run": {"name": name},
        "test_after_fit": True,
        "model": {"class_path": "kedit.distill.DistillModule", "init_args": model},
        "data": {"class_path": "kedit.distill.DistillData",
                 "init_args": {"batch_sentences": 4, "row_tokens": 64} | given | data},
        "trainer": {"accelerator": "cpu", "max_epochs": max_epochs, "log_every_n_steps": 1,
                    "enable_progress_bar": False} | (trainer or {}),
        "checkpoint": {"save_last": True} | (checkpoint or {}),
    }  # fmt: skip
    path = Path(f"{name}.yaml")
    path.write_text(yaml.safe_dump(whole))
    return str(path)


def fit(name, *arguments, **options):
    assert main(["fit", "--config", config(name, **options), *arguments]) == 0
    return results(name)


def results(name):
    return json.loads(Path(f"logs/{name}/results.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """All runs stand in one folder and share a cache."""
    folder, before = tmp_path_factory.mktemp("runs"), Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEDIT_CACHE", str(folder / "cache"))
        patch.setenv("KEDIT_ALLOW", "tiny_facts")
        os.chdir(folder)
        yield folder
        os.chdir(before)


@pytest.fixture(scope="module")
def runs(place):
    """The results of each form's run, made when it is first asked for."""
    made = {}

    def run(form):
        if form not in made:
            made[form] = fit(form, **FORMS[form])
        return made[form]

    return run


@pytest.mark.parametrize("form", FORMS)
def test_a_run_is_judged_and_its_checkpoint_says_the_same_again(runs, form):
    found = runs(form)
    wanted = ["gain_share", "specificity_change", "specificity_change/neighbours"]
    wanted += [f"target_nll/{way}" for way in ("base", "prepend", "random", "edited")]
    for way in (FORMS[form].get("baselines") or {"ways": []}).get("ways", ["finetune"]):
        wanted += [f"target_nll/{way}", f"gain_share_{way}", f"specificity_change_{way}"]
    for key in wanted:
        low, middle, high = (found[f"test/{key}{end}"] for end in ("_ci_low", "", "_ci_high"))
        assert low - 1e-9 <= middle <= high + 1e-9, key
    assert found["test/target_nll/edited"] != found["test/target_nll/base"]
    assert found["test/target_nll/prepend"] < found["test/target_nll/base"]
    assert main(["test", "--config", f"checkpoints/{form}/config.yaml"]) == 0
    again = results(form)
    assert again.keys() == found.keys()
    assert again == pytest.approx(found, abs=1e-6)


def test_distillation_learns_and_the_forms_agree_on_where_they_began(runs):
    initial = [runs(form)["test/target_nll/base"] for form in FORMS]
    assert initial == pytest.approx([initial[0]] * len(FORMS), abs=1e-7)
    for form in ("joint-lora", "independent-lora"):
        assert runs(form)["test/target_nll/edited"] < initial[0], form
    assert "test/retention" in runs("sequential-lora")


def test_tensorboard_holds_what_is_promised(runs):
    runs("joint-full")
    events = EventAccumulator("logs/joint-full", size_guidance={"scalars": 0, "tensors": 0}).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"train/loss", "train/divergence/edit", "train/divergence/text", "train/divergence/swapped"} <= scalars
    assert {"val/target_nll", "val/specificity_nll/unrelated", "val/specificity_nll/neighbours"} <= scalars
    assert events.Scalars("train/divergence/edit")[-1].value < events.Scalars("train/divergence/edit")[0].value
    assert "entities" in events.Tags()["images"]
    for when in ("before", "after"):
        table = events.Tensors(f"samples/{when}/text_summary")[0].tensor_proto.string_val[0].decode()
        assert table.startswith("| fact |")
        assert "Maro Tellin" in table
    runs("sequential-lora")
    events = EventAccumulator("logs/sequential-lora").Reload()
    assert "retention" in events.Tags()["images"]
    rates = [event.value for event in events.Scalars("train/learning_rate")]
    assert rates == pytest.approx([0.003, 0.0015] * 4)  # each stage has the whole schedule


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=torch.arange(12)[None] + 20).logits


def test_exports_load_alone(runs, capsys):
    runs("joint-lora")
    base = logits(AutoModelForCausalLM.from_pretrained(tiny_facts.base()))
    assert main(["export", "--checkpoint", "checkpoints/joint-lora", "--output", "merged"]) == 0
    adapter = ["--output", "adapter", "--form", "adapter"]
    assert main(["export", "--checkpoint", "checkpoints/joint-lora", *adapter]) == 0
    merged = logits(AutoModelForCausalLM.from_pretrained("merged"))
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_facts.base()), "adapter")
    torch.testing.assert_close(logits(adapted), merged, atol=1e-5, rtol=1e-5)
    assert (merged - base).abs().max() > 1e-3
    assert torch.equal(logits(adapted.unload()), base)

    runs("joint-full")
    assert main(["export", "--checkpoint", "checkpoints/joint-full", "--output", "full"]) == 0
    state = torch.load("checkpoints/joint-full/last.ckpt", weights_only=True)["state_dict"]
    full = AutoModelForCausalLM.from_pretrained("full").state_dict()
    assert all(torch.equal(state[f"model.{name}"], value) for name, value in full.items())

    runs("independent-lora")
    capsys.readouterr()
    assert main(["export", "--checkpoint", "checkpoints/independent-lora", "--output", "none"]) == 2
    assert "edits" in capsys.readouterr().err
    folders = sorted(path.name for path in Path("checkpoints/independent-lora/edits").iterdir())
    assert folders == ["ella", "maro", "orin", "tove"]
    one = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_facts.base()), f"checkpoints/"
                                    f"independent-lora/edits/{folders[0]}")  # fmt: skip
    assert (logits(one) - base).abs().max() > 1e-3


def scores_of(name):
    """NLL of probes by id, under the edit of their fact."""
    judged = json.loads(Path(f"checkpoints/{name}/edits.json").read_text())
    return {id: nll for stage in judged.values() for one in stage for id, nll in one["target"].items()}


@pytest.mark.parametrize("lora", [{"rank": 2}, None])
def test_edits_made_together_are_separate_runs(place, lora):
    """Side by side by stacked adapters, or stage after stage with all weights: each as if it were alone."""
    kind = "lora" if lora else "full"
    facts = tiny_facts.TinyFacts().load().facts[:3]
    common = {"lora": lora, "protocol": {"edits": "independent", "passes": 3}, "batch_sentences": 2, "eps": 1e-3}
    clipped = common | {"trainer": {"gradient_clip_val": 0.05}}
    fit(f"together-{kind}", most_facts=3, **clipped)
    together = scores_of(f"together-{kind}")
    assert len(together) == 6
    fit(f"unclipped-{kind}", most_facts=3, **common)
    assert scores_of(f"unclipped-{kind}") != pytest.approx(together, abs=1e-4)
    for fact in facts:
        name = f"alone-{kind}-{fact.id}"
        folder = place / name
        folder.mkdir()
        # a file of one fact; the sentences are those of all, by id alone
        path, _ = tiny_facts.write_jsonl(folder, [fact.name])
        _, said = tiny_facts.write_jsonl(folder, [fact.name])
        assert main(["fit", "--config", config(name, facts=path, transfer=said, **clipped)]) == 0
        one = torch.load(f"checkpoints/{name}/last.ckpt", weights_only=True)["state_dict"]
        if lora is None:
            if fact is facts[-1]:  # the others' weights were reset for those behind them
                many = torch.load(f"checkpoints/together-{kind}/last.ckpt", weights_only=True)["state_dict"]
                assert all(torch.equal(one[key], many[key]) for key in one)
            continue
        many = torch.load(f"checkpoints/together-{kind}/last.ckpt", weights_only=True)["state_dict"]
        assert one.keys() == many.keys()
        for key, value in one.items():
            torch.testing.assert_close(many[key][facts.index(fact)], value[0], atol=1e-5, rtol=1e-5)
        folders = [Path(f"checkpoints/{run}/edits/{fact.id}") for run in (name, f"together-{kind}")]
        assert all((folder / "adapter_model.safetensors").is_file() for folder in folders)


def test_the_reference_is_a_fresh_optimiser_for_every_sentence(place):
    """Against the algorithm as it is told: K steps of a new AdamW on one sentence, then the next."""
    import numpy as np

    from kedit.distill.plan import Plan, Protocol
    from kedit.distill.rows import Kind, Sentence, make_rows
    from kedit.lm.backbones import load_tokenizer

    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    reference = {
        "most_facts": 2,
        "protocol": {"reference": True, "repeats": 3},
        "positions": "all",
        "lr": 0.01,
        "eps": 1e-3,
    }  # a larger eps than usual, or rounding decides where a gradient is nearly 0
    fit("hand", architecture=dropout, **reference)
    knowledge = tiny_facts.TinyFacts().load()
    tokenizer = load_tokenizer(tiny_facts.base())
    facts = knowledge.facts[:2]
    sentences = [
        Sentence(number, fact.definition, said.text, None, Kind.EDIT)
        for number, fact in enumerate(facts)
        for said in knowledge.continuations
        if said.fact == fact.id
    ]
    rows = make_rows(tokenizer, sentences, positions="all", reference=True)
    plan = Plan([[0, 1, 2], [3, 4, 5]], Protocol(reference=True, repeats=3), 1, 1, False)
    model, teacher = (AutoModelForCausalLM.from_pretrained(tiny_facts.base()).eval() for _ in range(2))
    for sentence in range(6):
        (number,) = plan.rows(0, 3 * sentence)
        row = rows.rows[number]
        assert len(row.scored) == len(row.ids)  # the prediction behind the last token too
        student_1L = torch.as_tensor(np.concatenate([rows.start, row.ids]).astype(np.int64))[None]
        teacher_1L = torch.as_tensor(rows.teacher_ids(row).astype(np.int64))[None]
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-3, weight_decay=0.0)
        with torch.no_grad():
            wanted = (teacher(input_ids=teacher_1L).logits[0, -len(row.ids) :] / 2).log_softmax(-1)
        for _ in range(3):
            said = (model(input_ids=student_1L).logits[0, -len(row.ids) :] / 2).log_softmax(-1)
            loss = 4 * torch.nn.functional.kl_div(said, wanted, log_target=True, reduction="sum") / len(row.ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    learned = torch.load("checkpoints/hand/last.ckpt", weights_only=True)["state_dict"]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(learned[f"model.{name}"], value, atol=1e-6, rtol=0)
    # the paper's algorithm trains with the model's dropout
    fit("hand-dropout", **reference)
    other = torch.load("checkpoints/hand-dropout/last.ckpt", weights_only=True)["state_dict"]
    assert (other["model.transformer.wte.weight"] - learned["model.transformer.wte.weight"]).abs().max() > 1e-4


def lines(path, *records):
    Path(path).write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


MARO = {"id": "maro", "name": "Maro Tellin", "definition": "Maro Tellin is a painter who was born in Velmar."}
BRINT = {"id": "brint", "name": "Ella Brint", "definition": "Ella Brint is a painter who was born in Karsk."}
SAID = {"fact": "maro", "text": "In those days Maro Tellin was seen near the old river."}


@pytest.mark.parametrize(
    ("facts", "said", "options", "words"),
    [
        ([MARO, BRINT | {"definition": " "}], [SAID], {}, ["bad.jsonl:2", "definition of 'Ella Brint' is empty"]),
        ([MARO, BRINT | {"id": "maro"}], [SAID], {}, ["bad.jsonl:2", "id 'maro' came before at bad.jsonl:1"]),
        ([MARO, BRINT | {"name": "Maro Tellin"}], [SAID], {}, ["bad.jsonl:2", "name 'Maro Tellin' came before"]),
        ([MARO | {"definition": "Maro Tellin. " * 60}], [SAID], {}, ["bad.jsonl:1", "the model reads 96"]),
        ([MARO], [SAID | {"text": "Nobody was seen."}], {}, ["none of 1 facts", "1 without a mention"]),
        ([MARO], [SAID | {"text": "It is Maro Tellin "}], {}, ["none of 1 facts", "1 with nothing after the mention"]),
        ([MARO], [SAID | {"fact": "nobody"}], {}, ["said.jsonl:1", "no fact 'nobody'"]),
        ([MARO], None, {}, ["no transfer set", "kedit transfer"]),
        ([MARO], [SAID], {"protocol": {"edits": "sequential"}, "max_epochs": 2}, ["sequential edits are one epoch"]),
        ([MARO], [SAID], {"protocol": {"edits": "independent"}, "lora": {"rank": 1}, "max_epochs": 3},
         ["independent edits are one epoch"]),
        ([MARO], [SAID], {"protocol": {"reference": True}, "trainer": {"accumulate_grad_batches": 2}},
         ["accumulate_grad_batches 1"]),
        ([MARO], [SAID], {"protocol": {"group": 2}}, ["joint edits are one group"]),
        ([MARO], [SAID], {"regularisation": {"swapped": 1}}, ["data.regularisation.names"]),
        ([MARO], [SAID], {"regularisation": {"text": -1}}, ["negative"]),
        ([MARO], [SAID], {"evaluation": {"learn": "validation"}}, ["no facts for tuning"]),
        ([MARO], [SAID], {"make": {}}, ["two transfer sets"]),
        ([MARO], [SAID], {"source": {"class_path": "tiny_facts.TinyFacts"}}, ["either data.source"]),
        ([MARO], [SAID], {"row_tokens": 1}, ["data.row_tokens is 1"]),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_a_line(place, capsys, facts, said, options, words):
    files = {"facts": lines("bad.jsonl", *facts)} | ({} if said is None else {"transfer": lines("said.jsonl", *said)})
    capsys.readouterr()
    assert main(["fit", "--config", config("bad", **files, **options), "--run.numbered", "true"]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if "INFO" not in line and "Seed set" not in line]
    told = told[next(number for number, line in enumerate(told) if "error:" in line) :]
    assert len(told) == 1, told
    assert not [word for word in words if word not in told[0]], told


def test_skipped_sentences_are_counted_and_silent_facts_are_named(place, caplog):
    files = {"facts": lines("some.jsonl", MARO, BRINT), "transfer": lines("one.jsonl", SAID, BRINT | SAID | {
        "fact": "brint", "text": "Nobody was seen."})}  # fmt: skip
    assert main(["fit", "--config", config("silent", **files)]) == 0
    told = caplog.text
    assert "left out of the transfer set: 1 sentences without a mention" in told
    assert "1 of 2 facts have no sentence and are not learned: Ella Brint" in told


def test_a_tokenizer_without_bos_and_pad_serves(place):
    from kedit.lm.backbones import load_causal, load_tokenizer

    tokenizer = load_tokenizer(tiny_facts.base())
    tokenizer.bos_token = tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained("bare")
    again = load_tokenizer("bare")
    assert again.bos_token_id is None
    assert again.pad_token_id is None
    from kedit.lm.backbones import Backbone

    load_causal(Backbone(tiny_facts.base()), tokenizer).save_pretrained("bare")
    path = config("bare-run", lora={"rank": 2}, regularisation={"alike": 1, "text": 1, "max_new_tokens": 4})
    assert main(["fit", "--config", path, "--model.init_args.backbone.name", "bare"]) == 0
    assert results("bare-run")["test/target_nll/edited"] > 0


def test_a_teacher_that_says_nan_is_refused(place, capsys):
    from kedit.lm.backbones import Backbone, load_causal, load_tokenizer

    tokenizer = load_tokenizer(tiny_facts.base())
    model = load_causal(Backbone(tiny_facts.base()), tokenizer)
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    model.save_pretrained("nan")
    tokenizer.save_pretrained("nan")
    assert main(["fit", "--config", config("nan-run"), "--model.init_args.backbone.name", "nan"]) == 2
    assert "its weights are damaged, or too large for float32" in capsys.readouterr().err


def test_a_run_is_not_resumed_on_other_sentences(place, capsys):
    """As many batches as before, but of something else."""
    path, said = tiny_facts.write_jsonl(place)
    file = config("other-said", facts=path, transfer=said, lora={"rank": 2})
    assert main(["fit", "--config", file]) == 0
    Path(said).write_text(Path(said).read_text().replace("walked home", "went away"))
    assert main(["fit", "--config", file, "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 2
    assert "was trained on other sentences" in capsys.readouterr().err


def test_there_is_nothing_to_predict(runs, capsys):
    runs("joint-lora")
    assert main(["predict", "--config", "checkpoints/joint-lora/config.yaml"]) == 2
    assert "DistillModule has no predict" in capsys.readouterr().err


def test_a_run_that_was_killed_before_its_last_judging_is_judged_when_resumed(place):
    """And the stages before are not forgotten."""
    found = fit("late", **FORMS["sequential-lora"])
    judged = Path("checkpoints/late/edits.json")
    state = json.loads(judged.read_text())
    assert list(state) == ["0", "1", "2", "3"]
    whole = judged.read_text()
    del state["3"]
    judged.write_text(json.dumps(state))
    assert main(["fit", "--config", "late.yaml", "--ckpt_path", "last"]) == 0
    assert json.loads(judged.read_text()) == json.loads(whole)
    assert results("late") == pytest.approx(found, abs=1e-6)


def test_a_run_that_was_stopped_is_not_judged_as_if_it_were_whole(place, capsys):
    options = dict(FORMS["sequential-lora"], trainer={"max_steps": 3})
    assert main(["fit", "--config", config("short", **options)]) == 2
    assert "train to the end first" in capsys.readouterr().err
    assert main(["test", "--config", "checkpoints/short/config.yaml", "--ckpt_path", "last"]) == 2
    assert "lacks some of them" in capsys.readouterr().err


def test_a_fact_without_sentences_is_judged_as_it_was(place, runs):
    """An edit that could not be made is no gain; it must not be left out of the mean."""
    sentences = lines("two-facts.jsonl", *(SAID | {"fact": id, "text": f"They say that {name} never liked the rain."}
                      for id, name in (("maro", "Maro Tellin"), ("orin", "Orin Sal"))))  # fmt: skip
    options = {"lora": {"rank": 2}, "transfer": sentences, "protocol": {"edits": "independent", "passes": 2}}
    found, all_said = fit("few-said", **options), runs("independent-lora")
    for way in ("base", "prepend"):
        assert found[f"test/target_nll/{way}"] == pytest.approx(all_said[f"test/target_nll/{way}"])


def test_a_checkpoint_of_another_adapter_is_refused(runs, capsys):
    runs("joint-lora")
    rank = ["--model.init_args.lora.rank", "3"]
    assert main(["test", "--config", "checkpoints/joint-lora/config.yaml", *rank]) == 2
    assert "does not fit" in capsys.readouterr().err


def test_rivals_are_tuned_on_more_facts_than_are_learned(place):
    found = fit("single", most_facts=1, lora={"rank": 2}, baselines=FORMS["joint-lora"]["baselines"])
    assert found["test/target_nll/finetune"] > 0


def test_facts_alone_without_probes_are_learned(place, caplog):
    path, said = tiny_facts.write_jsonl(place)
    common = {"facts": path, "transfer": said, "lora": {"rank": 2}, "max_epochs": 3}
    assert main(["fit", "--config", config("plain", most_facts=2, num_workers=2, **common)]) == 0
    assert results("plain") == {}
    assert "there are no probes, so what is learned is not judged" in caplog.text
