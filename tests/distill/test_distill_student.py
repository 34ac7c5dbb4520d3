"""Whichever form the student has, the initial model is there bit for bit, and what was learned can be kept."""

import pytest
import torch
from conftest import tiny_causal
from peft import PeftModel

from kedit.distill.student import Student
from kedit.lm.adapters import Lora
from kedit.lm.backbones import output_head
from kedit.lm.causal import pack, states

FORMS = {"full": (None, None), "lora": (Lora(rank=2), None), "stacked": (Lora(rank=2), 3)}
ROWS = pack([[row] for row in torch.arange(6 * 7).view(6, 7).numpy() % 50])


@torch.no_grad()
def says(student):
    with student.editing(range(3)):
        return torch.nn.functional.linear(states(student.model, ROWS), *output_head(student.model))


@torch.no_grad()
def learn(student):
    """Change all that is trained, each edit differently."""
    torch.manual_seed(1)
    for parameter in student.parameters():
        parameter += 0.3 * torch.randn_like(parameter)


def make(form, seed=0):
    lora, side_by_side = FORMS[form]
    return Student(tiny_causal("gpt2", 60), lora, side_by_side, seed)


@pytest.mark.parametrize("form", FORMS)
def test_the_initial_model_is_there_bit_for_bit_at_any_time(form):
    with torch.no_grad():
        base = tiny_causal("gpt2", 60)
        wanted = torch.nn.functional.linear(states(base, ROWS), *output_head(base))
    student = make(form)
    assert torch.equal(says(student), wanted)
    learn(student)
    learned = says(student)
    assert not torch.allclose(learned, wanted, atol=1e-2)
    with pytest.raises(RuntimeError, match="inside"), student.initial():  # noqa: PT012
        with torch.no_grad():
            assert torch.equal(torch.nn.functional.linear(states(student.model, ROWS), *student.head), wanted)
        raise RuntimeError("inside")
    assert torch.equal(says(student), learned)
    assert torch.equal(student.initial_head.weight_VD, base.get_output_embeddings().weight)
    student.reset()
    assert torch.equal(says(student), wanted)
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_what_was_learned_is_saved_and_taken_up(form):
    student, other = make(form), make(form, seed=5)
    learn(student)
    other.load_state({name: value.clone() for name, value in student.state().items()})
    assert torch.equal(says(student), says(other))
    if form != "full":
        assert sum(value.numel() for value in student.state().values()) < 10_000  # no weight of the base
        with pytest.raises(ValueError, match="not fit"):
            other.load_state({})
        with pytest.raises(ValueError, match="not fit"):
            Student(tiny_causal("gpt2", 60), Lora(rank=3), FORMS[form][1]).load_state(student.state())


def test_reset_gives_an_adapter_its_first_values_again():
    for form in ("lora", "stacked"):
        student = make(form)
        first = {name: value.clone() for name, value in student.state().items()}
        learn(student)
        student.reset()
        assert all(torch.equal(first[name], value) for name, value in student.state().items())


def test_edits_side_by_side_begin_as_one_alone_does():
    stacked, alone = make("stacked"), make("lora")
    wanted = alone.state()
    for edit in range(3):
        mine = stacked.stacked.adapter(edit)
        assert mine.keys() == wanted.keys()
        assert all(torch.equal(mine[name], wanted[name]) for name in wanted)
    assert any(value.any() for value in wanted.values())


def test_what_is_trained():
    assert len(make("full").parameters()) == len(list(tiny_causal("gpt2", 60).parameters()))
    for form in ("lora", "stacked"):
        student = make(form)
        names = [name for name, parameter in student.model.named_parameters() if parameter.requires_grad]
        assert names
        assert all("lora_" in name for name in names)


def test_no_edit_is_the_initial_model():
    student = make("stacked")
    learn(student)
    with torch.no_grad(), student.editing([]):
        hidden = states(student.model, ROWS)
    assert torch.equal(hidden, states(tiny_causal("gpt2", 60), ROWS))


@pytest.mark.parametrize("form", ["lora", "stacked"])
def test_adapters_are_written_for_peft(form, tmp_path):
    student = make(form)
    learn(student)
    folders = [tmp_path / str(edit) for edit in range(3 if form == "stacked" else 1)]
    student.save_adapters(folders, "base")
    said = says(student)
    for edit, folder in enumerate(folders):
        read = PeftModel.from_pretrained(tiny_causal("gpt2", 60), folder).eval()
        with torch.no_grad():
            hidden = states(read.base_model.model, ROWS)
            logits = torch.nn.functional.linear(hidden, *output_head(read.base_model.model))
        rows = slice(2 * edit, 2 * edit + 2) if form == "stacked" else slice(None)
        torch.testing.assert_close(logits[rows], said[rows], atol=1e-4, rtol=1e-4)


def test_all_weights_are_no_adapter(tmp_path):
    with pytest.raises(ValueError, match="no adapter to save"):
        make("full").save_adapters([tmp_path / "a"], "base")


def test_frozen_embeddings_stay_and_all_else_is_trained():
    student = Student(tiny_causal("gpt2", 60), None, freeze_embeddings=True)
    before = student.model.get_input_embeddings().weight.clone()
    others = {name: value.clone() for name, value in student.model.named_parameters() if "wte" not in name}
    learn(student)
    assert torch.equal(student.model.get_input_embeddings().weight, before)
    assert torch.equal(student.head.weight_VD, student.initial_head.weight_VD)
    changed = dict(student.model.named_parameters())
    assert all(not torch.equal(value, changed[name]) for name, value in others.items())
