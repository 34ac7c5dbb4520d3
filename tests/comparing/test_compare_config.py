"""Mistakes of a comparison's configuration: `compare` and `check` tell them with their line, and load no model."""

import re
from pathlib import Path

import pytest

from kedit.cli import main
from kedit.editing.sources import DataError

GOOD = """\
run: {name: one}
bases:
  bart: {backbone: {name: facebook/bart-base}}
contestants:
  as it is: {class_path: kedit.contestants.AsItIs}
  a prompt:
    class_path: kedit.contestants.TextInPrompt
    init_args: {text: edit}
facts: {class_path: EditFile, init_args: {file: e.jsonl}}
judging: {max_new_tokens: 4, timed: 0}
"""
TUNED = "kedit.contestants.Finetune"


def tried(way: str, settings: str) -> tuple[str, str]:
    """What is replaced in GOOD, and by what."""
    return "kedit.contestants.TextInPrompt\n    init_args: {text: edit}", f"{way}\n    init_args: {settings}"


BOTH = [  # what is replaced, by what, the line, words
    ("{name: facebook/bart-base}", "{}", 3, "backbone names no model: give backbone.name"),
    (*tried(TUNED, "{tuning: {learning_rate: .nan}}"), 8, "tuning.learning_rate is nan: give"),
    (*tried("kedit.contestants.LoraTuning", "{lora: {rank: 0}}"), 8, "lora.rank is 0: wanted"),
    (*tried("kedit.contestants.Distillation", "{settings: {sentences: 0}}"), 8, "settings.sentences is 0, wanted"),
    ("timed: 0", "timed: -1", 10, "judging.timed is -1: give"),
    ("name: one", "name: ../x", 1, "run.name '../x' is no folder name"),
    ("text: edit", "rate: 2", 8, "rate is 2.0: give"),
    ("text: edit", "template: '{edit}'", 8, r"template is '\{edit\}': give a text with"),
    ("text: edit", "template: '{edit {prompt}'", 8, r"template is .*: give a text with"),
    ("TextInPrompt", "TextInPromt", 7, "unknown class kedit.contestants.TextInPromt"),
    ("run: {name: one}", "run: {name: one, name: two}", 1, "name stands twice in one mapping"),
    ("  a prompt:", "  as it is: {class_path: kedit.contestants.AsItIs}\n  a prompt:", 6, "as it is stands twice"),
    ("judging:", "judgement: 1\njudging:", 10, "unknown key judgement"),
    (
        "text: edit}",
        "text: edot}\n  b: {class_path: kedit.contestants.TextInPrompt, init_args: {text: definition}}",
        8,
        "edit, definition, got 'edot'",
    ),
    ("contestants:", "contestant:", 4, r"unknown key contestant.*\s*did you mean contestants"),
    ("e.jsonl}", "e.jsonl, definitions: none.jsonl}", 9, "none.jsonl"),
]
TOLD_BY_CHECK = [
    ("facebook/bart-base", "./none", 3, "name names what is not there: ./none; correct"),
    ("text: edit", "run: nope", 8, r"contestants.a prompt: run nope: no such run"),
    (*tried("kedit.contestants.Recipe", "{run: nope}"), 8, r"contestants.a prompt: run nope: no such run"),
    ("timed: 0", "perplexity: none.txt", 10, "perplexity names what is not there: none.txt"),
    (*tried("kedit.contestants.Kilm", "{settings: {text: none.txt}}"), 8, "text names what is not there: none.txt"),
    ("text: edit", "bases: [gpt]", 8, "contestants.a prompt.bases: 'gpt' is none of bases"),
    ("  as it is: {class_path: kedit.contestants.AsItIs}\n", "", 4, "contestants: none is the model as it is"),
    ("judging:", "seeds: [1, 1]\njudging:", 10, "seeds are .1, 1.: wanted"),
    ("name: one", "name: one, numbered: true", 1, "run.numbered is true"),
    ("judging:", "judgement: 1\njudging:", 10, "; .*kedit compare --help"),
]  # fmt: skip


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("e.jsonl").write_text('{"prompt": "The moon is", "target": "far", "subject": "moon"}\n')

    def write(old: str = "", new: str = "") -> None:
        assert old in GOOD
        Path("c.yaml").write_text(GOOD.replace(old, new, 1))

    return write


@pytest.mark.parametrize(("old", "new", "line", "words"), BOTH)
def test_compare_tells_what_cannot_be_made_in_three_lines(written, capsys, old, new, line, words):
    written(old, new)
    assert main(["compare", "--config", "c.yaml"]) == 2
    told = capsys.readouterr().err.partition("error: ")[2]
    assert re.search(words, told), told
    assert re.search(rf"c\.yaml:{line}\b", told), told
    assert len(told.splitlines()) <= 3
    assert "Traceback" not in told


@pytest.mark.parametrize(("old", "new", "line", "words"), [*BOTH, *TOLD_BY_CHECK])
def test_check_tells_what_compare_refuses(written, capsys, old, new, line, words):
    written(old, new)
    assert main(["check", "c.yaml"]) == 2
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2, told
    assert re.match(rf"c\.yaml:{line}: .*{words}", told[0]), told


def test_check_takes_a_good_one(written, capsys):
    written()
    assert main(["check", "c.yaml"]) == 0
    assert "no problem" in capsys.readouterr().out


def test_a_way_is_known_to_the_help_by_its_short_name(capsys):
    assert main(["compare", "--contestants.help", "Distillation"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: python -m kedit")
    assert "--contestants.settings.sentences" in told


def test_several_mistakes_of_a_plan_are_told_together(written, capsys):
    written(
        "text: edit}", "run: nope, bases: [gpt]}\n  b: {class_path: kedit.contestants.Recipe, init_args: {run: gone}}"
    )
    Path("c.yaml").write_text(Path("c.yaml").read_text() + "seeds: []\n")
    assert main(["check", "c.yaml"]) == 2
    told = capsys.readouterr().out
    assert re.findall(r"c.yaml:(\d+): (?:contestants\.)?([\w ]+)", told) == [
        ("8", "a prompt"),
        ("9", "b"),
        ("12", "seeds are "),
    ]


def test_of_two_values_that_may_be_meant_both_lines_are_told(written, capsys):
    written("  bart:", "  other: {backbone: {architecture: {}}}\n  bart:")
    assert main(["compare", "--config", "c.yaml"]) == 2
    assert "(c.yaml:3 or 4)" in capsys.readouterr().err


def test_what_stands_on_the_command_line_is_sought_in_no_file(written, capsys):
    written()
    assert main(["compare", "--config", "c.yaml", "--judging.timed", "-1"]) == 2
    told = capsys.readouterr().err
    assert "judging.timed is -1: give at least 0\n" in told
    assert "c.yaml" not in told


def test_a_key_that_stands_twice_is_refused_by_every_command_with_keys(written, capsys):
    written()
    Path("twice.yaml").write_text("output: a\ninput: b\noutput: c\n")
    for command in ("corpus", "export", "fit"):
        assert main([command, "--config", "twice.yaml"]) == 2
        assert f"{command}: error: twice.yaml:3: output stands twice" in capsys.readouterr().err


def test_a_value_that_stands_in_itself_does_no_harm(written):
    written()
    Path("c.yaml").write_text(GOOD + "seeds: &seeds [*seeds]\n")
    assert main(["compare", "--config", "c.yaml"]) == 2


def test_the_plan_of_a_comparison_is_refused_without_a_model():
    from kedit.comparing.command import check_plan

    with pytest.raises(DataError, match="bases is empty"):
        check_plan({}, {}, None, None, None)
