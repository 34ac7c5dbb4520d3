"""On-policy sentences: kept up to the mention, gone on with by the student, read again by the teacher."""

import json

import numpy as np
import pytest
import tiny_facts
import torch
import yaml

from kedit.cli import main
from kedit.distill.on_policy import OnPolicy, rewritten, seeds_of
from kedit.distill.rows import Kind, Sentence, Template
from kedit.lm.backbones import Backbone, load_causal, load_tokenizer


@pytest.fixture(scope="module")
def student():
    tokenizer = load_tokenizer(tiny_facts.base())
    return load_causal(Backbone(tiny_facts.base()), tokenizer).eval(), tokenizer


def rows_of(student, sentences, **options):
    model, tokenizer = student
    settings, seeds = OnPolicy(max_new_tokens=6, **options), seeds_of(0, 3, range(len(sentences)))
    return rewritten(model, tokenizer, sentences, settings, seeds, Template(), "after_mention", 96)


def test_a_sentence_is_kept_up_to_its_mention(student):
    text = "Here Maro Tellin was seen."
    sentences = [
        Sentence(0, "Maro Tellin is a painter.", text, (5, 16), Kind.EDIT),
        Sentence(0, "", "The river of the north is old.", None, Kind.TEXT),
        Sentence(0, "", "Here Velmar was seen.", (5, 11), Kind.SWAPPED),
    ]
    rows = rows_of(student, sentences)
    tokenizer = student[1]
    texts = [tokenizer.decode(row.ids).strip() for row in rows.rows]
    assert texts[0].startswith("Here Maro Tellin")
    assert texts[0] != text
    assert texts[1:] == [sentences[1].text, sentences[2].text]
    assert [row.sentence for row in rows.rows] == [0, 1, 2]
    written = rows.rows[0]
    assert written.scored[0] == len(tokenizer(" Here Maro Tellin", add_special_tokens=False)["input_ids"]) - 1
    assert len(rows.prefixes[written.prefix]) > len(rows.prefixes[rows.rows[1].prefix]) == len(rows.start)


def test_the_same_step_writes_the_same_and_another_step_something_else(student):
    sentences = [Sentence(0, "x", f"{name} was seen.", (0, len(name)), Kind.EDIT) for name in tiny_facts.PLACES]
    one, two = (rows_of(student, sentences, temperature=2.0) for _ in range(2))
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(one.rows, two.rows, strict=True))
    model, tokenizer = student
    other = rewritten(model, tokenizer, sentences, OnPolicy(6, 2.0), seeds_of(0, 4, range(6)), Template(),
                      "after_mention", 96)  # fmt: skip
    assert any(not np.array_equal(a.ids, b.ids) for a, b in zip(one.rows, other.rows, strict=True))


def test_a_sentence_that_ends_at_its_mention_stays_as_it_was(student, monkeypatch):
    monkeypatch.setattr("kedit.distill.on_policy.sample", lambda model, tokenizer, prompts, **_: [""] * len(prompts))
    text = "Here Maro Tellin was seen."
    (row,) = rows_of(student, [Sentence(0, "x", text, (5, 16), Kind.EDIT)]).rows
    assert student[1].decode(row.ids).strip() == text


def test_the_student_goes_on_from_the_tokens_that_it_is_taught(student, monkeypatch):
    """A name that begins a sentence has other tokens than behind a space, as it stands in rows and probes."""
    given = []

    def told(model, tokenizer, prompts, **_):
        given.extend(prompts)
        return [" was seen."] * len(prompts)

    monkeypatch.setattr("kedit.distill.on_policy.sample", told)
    rows = rows_of(student, [Sentence(0, "x", "Maro Tellin sang.", (0, 11), Kind.EDIT)])
    (prompt,) = given
    assert prompt == rows.student_ids(rows.rows[0])[: len(prompt)].tolist()
    assert len(prompt) - len(rows.start) - 1 == rows.rows[0].scored[0]


def test_the_student_does_not_learn_from_what_probes_ask(student, monkeypatch):
    said = iter([" sang. Ask where Maro Tellin lives.", " sang.", ", of whom they ask where he lives."])
    monkeypatch.setattr("kedit.distill.on_policy.sample", lambda *_, **__: [next(said) for _ in range(3)])
    model, tokenizer = student
    given = {"Here Maro Tellin was seen.": 5, "Maro Tellin was seen.": 0, "Ask Maro Tellin, who knows.": 4}
    sentences = [Sentence(0, "x", text, (start, start + 11), Kind.EDIT) for text, start in given.items()]
    rows = rewritten(
        model, tokenizer, sentences, OnPolicy(), [1, 2, 3], Template(), "after_mention", 96,
        ["Ask where {name}", "Ask {name}, of whom"], [("Maro Tellin",)],
    )  # fmt: skip
    texts = [tokenizer.decode(row.ids).strip() for row in rows.rows]
    assert texts == ["Here Maro Tellin sang.", "Maro Tellin sang.", "Ask Maro Tellin, who knows."]


@pytest.mark.parametrize("bad", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}])
def test_settings_that_cannot_be(bad):
    with pytest.raises(ValueError, match="on_policy"):
        OnPolicy(**bad)


def configuration(**more):
    model = {
        "backbone": {"name": tiny_facts.base()},
        "on_policy": {"max_new_tokens": 6},
        "divergence": {"kind": "reverse_kl", "temperature": 1.0},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
    }
    return {
        "seed_everything": 1,
        "run": {"name": "onpolicy"},
        "test_after_fit": True,
        "model": {"class_path": "kedit.distill.DistillModule", "init_args": model | more},
        "data": {
            "class_path": "kedit.distill.DistillData",
            "init_args": {"source": {"class_path": "tiny_facts.TinyFacts"}, "batch_sentences": 6},
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 10, "log_every_n_steps": 1, "enable_progress_bar": False},
    }


def test_the_student_learns_from_what_it_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KEDIT_ALLOW", "tiny_facts")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(configuration(lora={"rank": 4})))
    assert main(["fit", "--config", "run.yaml"]) == 0
    results = json.loads((tmp_path / "logs/onpolicy/results.json").read_text())
    assert results["test/target_nll/prepend"] < results["test/target_nll/base"]
    assert results["test/target_nll/edited"] < results["test/target_nll/base"]
    assert not (tmp_path / "cache/teacher").exists()  # nothing is written before it is read

    (tmp_path / "run.yaml").write_text(yaml.safe_dump(configuration(divergence={"top_k": 4})))
    assert main(["fit", "--config", "run.yaml", "--run.name", "top"]) == 2
    assert "divergence.top_k" in capsys.readouterr().err
    assert main(["fit", "--config", "run.yaml", "--run.name", "sum", "--trainer.accumulate_grad_batches", "2"]) == 2
    assert "set trainer.accumulate_grad_batches 1 (it is 2)" in capsys.readouterr().err


def test_logits_of_the_student_are_not_changed_by_writing(student):
    model, tokenizer = student
    ids = torch.tensor([tokenizer("Maro Tellin", add_special_tokens=False)["input_ids"]])
    before = model(input_ids=ids).logits
    rows_of(student, [Sentence(0, "x", "Maro Tellin was seen.", (0, 11), Kind.EDIT)])
    assert torch.equal(model(input_ids=ids).logits, before)
