"""Texts before questions and memories of runs: found by names or by what a run trained, and taken out exactly."""

import time

import numpy as np
import pytest
from tiny_contest import EDITS, MARO, NAMELESS, base, facts, run
from torch.utils.tensorboard import SummaryWriter

from kedit.contestants import Recipe, TextInPrompt, recipe
from kedit.contestants.text_in_prompt import ByName
from kedit.contestants.trained_memory import find_run, training_seconds
from kedit.editing.edits import Edit
from kedit.editing.sources import DataError
from kedit.recipe.editor import RecipeEditor

DEFINITION = f"{MARO} is a painter of the Grey Bridge who was born in Velmar."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return base(tmp_path_factory.mktemp("bases") / "llama", bos=True)


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    return run(tmp_path_factory.mktemp("run") / "run", model, bos=True, calibration=["Who lives in the marshes?"])


def by_name(text="edit", edits=EDITS, more=()):
    found = ByName(facts(*more), text)
    found.edit(edits)
    return found


def test_by_name_the_nearest_edit_of_the_longest_name_is_found():
    found = by_name().find([
        f"Where was {MARO} born?", f"What has {MARO} painted?", "The Grey Bridge", "Tellin was", "Nobody", "Tellinson",
    ])  # fmt: skip
    born, painted = f"{MARO} was born in Velmar.", f"{MARO} painted the Grey Bridge."
    # the further name is known as soon as the definition is
    assert found == [born, painted, "The Grey Bridge was built by the Tellin company.", born, None, None]
    assert by_name(edits=EDITS[:1]).find(["Tellin was"]) == [None]
    junior = Edit("9", f"{MARO} Junior was", "a heron", f"{MARO} Junior")
    assert by_name(edits=[*EDITS, junior], more=[junior]).find([f"What was {MARO} Junior?"]) == [
        f"{MARO} Junior was a heron."
    ]


def test_by_name_definitions_follow_what_is_taught_and_forgotten():
    texts = by_name("definition")
    assert texts.find([MARO, "Grey Bridge"]) == [DEFINITION, "The Grey Bridge was built by the Tellin company."]
    assert texts.stored_bytes == len(DEFINITION) + len("The Grey Bridge was built by the Tellin company.")
    texts.forget(["3"])
    assert texts.find([MARO]) == [f"{MARO} was born in Velmar."]
    texts.reset()
    assert (texts.find([MARO]), texts.stored_bytes) == ([None], 0)


@pytest.mark.parametrize("by", ["name", "memory"])
@pytest.mark.parametrize("text", ["edit", "definition"])
def test_a_text_stands_before_the_question_as_plain_text(model, trained, tmp_path, text, by):
    opened = TextInPrompt(text=text, run=trained if by == "memory" else None).open(model, facts(), 0, tmp_path)
    editor, prompts, targets = opened.editor, [EDITS[0].prompt, "It rains"], ["Velmar", "heron"]
    initial = editor.score(prompts, targets)
    editor.edit(EDITS)
    told = DEFINITION if text == "definition" else f"{EDITS[0].text}."
    by_hand = editor.model.score([f"{told} {prompts[0]}", prompts[1]], targets)
    for now, was in zip(editor.score(prompts, targets), by_hand, strict=True):
        np.testing.assert_allclose(now, was, atol=1e-5)
    assert opened.can_take_out
    assert opened.editor.stored_bytes > 0
    assert opened.training_seconds == (None if by == "memory" else 0)
    editor.forget(["1", "3"])
    for now, was in zip(editor.score(prompts, targets), initial, strict=True):
        np.testing.assert_allclose(now, was, atol=1e-5)
    editor.reset()
    editor.edit(EDITS)  # ids are free again
    editor.forget(["2"])
    assert list(editor.edits) == ["1", "3"]
    with pytest.raises(DataError, match="was not taught '2'"):
        editor.forget(["2"])


def test_a_memory_needs_no_names(model, trained, tmp_path):
    editor = TextInPrompt(run=trained).open(model, facts(NAMELESS), 0, tmp_path).editor
    editor.edit([*EDITS, NAMELESS])
    assert editor.texts.find([NAMELESS.prompt]) == [f"{NAMELESS.text}."]


def test_a_run_of_another_model_may_find_texts(trained, tmp_path):
    other = base(tmp_path / "t5", "t5")
    way = TextInPrompt(run=trained)
    assert way.unfit(other, facts()) == ""
    editor = way.open(other, facts(), 0, tmp_path).editor
    editor.edit(EDITS)
    assert editor.texts.find([EDITS[1].prompt]) == [f"{EDITS[1].text}."]


def test_of_several_runs_the_one_that_was_trained_for_the_model_is_taken(model, trained, tmp_path, monkeypatch):
    real = recipe.of_another_model
    monkeypatch.setattr(recipe, "of_another_model", lambda run, base: "another" if run == "x" else real(run, base))
    way = Recipe(run=["x", trained])
    assert way.unfit(model, facts()) == ""
    editor = way.open(model, facts(), 0, tmp_path).editor
    editor.edit(EDITS)
    assert [one.fired for one in editor.decide([edit.prompt for edit in EDITS])] == [True] * 3


def test_a_runs_memory_answers_and_forgets(model, trained, tmp_path):
    opened = Recipe(run=trained).open(model, facts(), 0, tmp_path)
    editor, prompts, targets = opened.editor, [edit.prompt for edit in EDITS], [edit.target for edit in EDITS]
    assert isinstance(editor, RecipeEditor)
    initial = np.concatenate(editor.score(prompts, targets))
    editor.edit(EDITS)
    assert [one.fired for one in editor.decide(prompts)] == [True] * 3
    taught = np.concatenate(editor.score(prompts, targets))
    assert not np.allclose(taught, initial)
    width = editor.memory.networks.key_width
    assert opened.editor.stored_bytes == sum(len(edit.text) + 4 * width for edit in EDITS)
    editor.reset()
    np.testing.assert_array_equal(np.concatenate(editor.score(prompts, targets)), initial)
    assert opened.editor.stored_bytes == 0
    editor.edit(EDITS)
    np.testing.assert_array_equal(np.concatenate(editor.score(prompts, targets)), taught)
    editor.forget(["1", "3"])
    left = np.concatenate(editor.score(prompts, targets))
    np.testing.assert_allclose(left[[0, -1]], initial[[0, -1]], atol=1e-5)
    assert [one.fired for one in editor.decide(prompts)] == [False, True, False]
    with pytest.raises(DataError, match="holds no edit '1'"):
        editor.forget(["1"])


def test_how_long_a_run_trained_is_read_from_its_logs(model, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints" / "memory-1"
    run(folder, model, bos=True)
    assert training_seconds(find_run(str(folder))) is None
    (folder / "config.yaml").write_text("run: {name: memory, logs: written}\n")
    assert training_seconds(find_run(str(folder))) is None
    began = time.time()
    for offset in (0, 1000):  # one that was gone on with
        with SummaryWriter(str(tmp_path / "written" / "memory-1"), filename_suffix=f".{offset}") as writer:
            for step in range(4):
                writer.add_scalar("train/loss", 1.0, step, walltime=began + offset + 10 * step)
            writer.add_scalar("test/reliability", 1.0, 4, walltime=began + offset + 500)
    assert training_seconds(find_run(str(folder))) == pytest.approx(60)
