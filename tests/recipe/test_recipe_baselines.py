"""Rivals learn and forget as they say, are asked as the plain model is, and give the initial model back bit for bit."""

from types import SimpleNamespace

import conftest
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from kedit.editing.edits import Edit, probe
from kedit.editing.sources import DataError
from kedit.editing.stream import EditedModel, Stream, run
from kedit.lm.adapters import Lora
from kedit.lm.backbones import load_tokenizer
from kedit.recipe.baselines import NoEdit, TextPrefix, fired_texts
from kedit.recipe.finetune import FineTune, LoraTune
from kedit.recipe.prefix import PrefixedModel
from kedit.recipe.tuning import Tuning

EDITS = [
    Edit("1", "Maro Tellin was born in", "Velmar"),
    Edit("2", "The Grey Bridge was built by", "the Tellin company"),
    Edit("3", "A heron of the north is called", "Tellin"),
]
QUICK = Tuning(steps=40, learning_rate=3e-3)
KINDS = {
    "all": lambda model, **options: FineTune(model, QUICK, **options),
    "layer": lambda model, **options: FineTune(model, QUICK, layer=1, **options),
    "lora": lambda model, **options: LoraTune(model, Tuning(40, 1e-2), Lora(rank=4), **options),
}


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folders):
    return load_tokenizer(tokenizer_folders["bart"])


def tiny(tokenizer, name="llama"):
    special = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    # wide enough for one layer to make any token likely
    return PrefixedModel(conftest.tiny_causal(name, len(tokenizer), hidden_size=64, **special), tokenizer)


@pytest.fixture
def model(tokenizer):
    return tiny(tokenizer)


def weights(model: PrefixedModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.model.state_dict().items()}


def changed(model: PrefixedModel, before: dict[str, torch.Tensor]) -> set[str]:
    now = model.model.state_dict()
    assert now.keys() == before.keys()
    return {name for name, value in now.items() if not torch.equal(value, before[name])}


class Shelf:
    """Finds an edit by its very prompt, or by one that ends with it."""

    def __init__(self):
        self.edits, self.asked = {}, []

    def edit(self, edits):
        self.edits |= {edit.id: edit for edit in edits}
        return len(edits)

    def forget(self, ids):
        for id in ids:
            del self.edits[id]

    def reset(self):
        self.edits = {}

    def retrieve(self, prompts):
        self.asked.append(list(prompts))
        return [next((edit.text for edit in self.edits.values() if edit.prompt == prompt), None) for prompt in prompts]


# fine-tuning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_taught_is_written_and_reset_gives_the_initial_model_back(model, kind):
    before, asked = weights(model), [edit.prompt for edit in EDITS]
    said, nll = model.generate(asked, max_new_tokens=8), model.score(asked, [edit.target for edit in EDITS])
    editor = KINDS[kind](model)
    assert isinstance(editor, EditedModel)
    for edit in EDITS:
        report = editor.edit([edit])
        assert (report.edits, report.learned) == (1, 1)
        assert 0 < report.steps < 40
        assert report.last_nll < -np.log(0.9) < report.first_nll
        written = editor.generate([edit.prompt], 8)[0].strip()
        assert written.startswith(edit.target)
        assert written != said[EDITS.index(edit)]
        assert editor.greedy_matches([edit.prompt], [edit.target])[0].all()
        assert editor.score([edit.prompt], [edit.target])[0].max() < -np.log(0.9) + 1e-4
    assert editor.stored_bytes > 0
    assert editor.bytes_per_edit == editor.stored_bytes / 3
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.model.parameters())
    editor.reset()
    assert not changed(model, before)
    assert editor.generate(asked, 8) == said
    for now, was in zip(editor.score(asked, [edit.target for edit in EDITS]), nll, strict=True):
        np.testing.assert_array_equal(now, was)
    assert (editor.stored_bytes, editor.bytes_per_edit, editor.edits) == (0, 0, {})
    editor.reset()  # of what has no edits
    assert editor.edit([EDITS[0]]).learned == 1  # and it can be taught again


def test_steps_are_those_of_adamw_on_the_targets_tokens(model, tokenizer):
    other = tiny(tokenizer)
    editor = FineTune(model, Tuning(steps=3, learning_rate=1e-3, batch=2, until=1.0))
    report = editor.edit(EDITS)
    assert report.steps == 6
    for group in (EDITS[:2], EDITS[2:]):
        optimizer = torch.optim.AdamW(other.model.parameters(), lr=1e-3, weight_decay=0.0)
        other.model.requires_grad_(True)
        for _ in range(3):
            losses = []
            for edit in group:
                ids = torch.tensor([tokenizer(edit.text)["input_ids"]])
                first = len(tokenizer(edit.prompt)["input_ids"])
                losses.append(
                    torch.nn.functional.cross_entropy(other.model(ids).logits[0, first - 1 : -1], ids[0, first:])
                )
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            optimizer.step()
    for name, value in model.model.state_dict().items():
        torch.testing.assert_close(value, other.model.state_dict()[name], atol=2e-5, rtol=1e-4)


def test_one_layer_changes_only_that_layer(model):
    before = weights(model)
    editor = FineTune(model, QUICK, layer=1)
    editor.edit(EDITS)
    moved = changed(model, before)
    assert moved
    assert all(name.startswith("model.layers.1.") for name in moved)
    assert editor.stored_bytes == sum(4 * before[name].numel() for name in before if ".layers.1." in name)


@pytest.mark.parametrize("bound_from", ["edit", "base"])
def test_no_weight_goes_further_than_the_bound(model, bound_from):
    start = before = weights(model)
    editor = FineTune(model, Tuning(8, 1e-3, until=1.0), bound=2e-3, bound_from=bound_from)
    for edit in EDITS:
        editor.edit([edit])
        now = weights(model)
        further = {origin: max(float((now[name] - was[name]).abs().max()) for name in now)
                   for origin, was in (("edit", before), ("base", start))}  # fmt: skip
        assert 1.9e-3 < further[bound_from] <= 2e-3 + 1e-6  # reached, and held
        before = now
    assert (further["base"] > 2.5e-3) == (bound_from == "edit")


def test_edits_learned_at_once_are_learned_together(model):
    report = FineTune(model, Tuning(60, 3e-3, batch=3)).edit(EDITS)
    assert report.learned == 3
    assert report.steps < 60
    assert all(matches.all() for matches in model.greedy_matches([e.prompt for e in EDITS], [e.target for e in EDITS]))


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoder_decoder_is_tuned_alike(name, bart_tokenizer, t5_tokenizer):
    tokenizer = bart_tokenizer if name == "bart" else t5_tokenizer
    network: PreTrainedModel = conftest.tiny_model(name, len(tokenizer)).eval()
    network.config.decoder_start_token_id = network.generation_config.decoder_start_token_id = 0
    model = PrefixedModel(network, tokenizer)
    before = weights(model)
    editor = FineTune(model, Tuning(60, 1e-2))
    assert editor.edit(EDITS[:1]).learned == 1
    assert editor.generate([EDITS[0].prompt], 6)[0].strip().startswith("Velmar")
    editor.reset()
    assert not changed(model, before)
    FineTune(model, Tuning(2, 1e-2), layer=1).edit(EDITS)
    moved = changed(model, before)
    assert moved
    assert all(key.split("decoder.")[1].split(".")[1] == "1" for key in moved)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_forget_one_edit_only_by_learning_the_others_again(model, kind, tokenizer):
    editor = KINDS[kind](model)
    editor.edit(EDITS)
    taught = weights(model)
    with pytest.raises(DataError, match=r"cannot forget one: reset\(\).*relearn=True"):
        editor.forget(["2"])
    assert not changed(model, taught)
    editor.reset()
    before = weights(model)
    again = KINDS[kind](model, relearn=True)
    again.edit(EDITS[:2])
    again.edit(EDITS[2:])
    report = again.forget(["2"])
    assert (report.edits, report.learned, list(again.edits)) == (2, 2, ["1", "3"])
    fresh = KINDS[kind](tiny(tokenizer))
    fresh.edit([EDITS[0]])
    fresh.edit([EDITS[2]])
    assert not changed(fresh.model, weights(model))
    again.forget("1")
    again.forget(["3"])
    assert not changed(model, before)
    with pytest.raises(DataError, match="was not taught '1'; it was taught nothing"):
        again.forget(["1"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("taught", [0, 1])
def test_what_is_interrupted_leaves_the_model_as_it_was(model, kind, taught, monkeypatch):
    editor = KINDS[kind](model, relearn=True)
    if taught:
        editor.edit(EDITS[:1])
    before, steps, plain = weights(model), [], torch.optim.AdamW.step

    def step(self, closure=None):
        steps.append(plain(self, closure))
        if len(steps) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(KeyboardInterrupt):
        editor.edit(EDITS[1:])
    assert not changed(model, before)
    assert list(editor.edits) == ["1"][:taught]
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def test_a_loss_that_is_not_finite_names_the_edit(model):
    before = weights(model)
    editor = FineTune(model, Tuning(learning_rate=1e30))
    with pytest.raises(DataError, match=r"edit '1': the loss of step . is .* smaller tuning.learning_rate"):
        editor.edit(EDITS)
    assert not changed(model, before)


# text before the prompt -----------------------------------------------------------------------------------------------


def test_the_text_before_the_prompt_is_plain_text(model, tokenizer):
    shelf = Shelf()
    editor = TextPrefix(model, shelf.retrieve, shelf)
    assert isinstance(editor, EditedModel)
    assert editor.edit(EDITS) == 3
    asked = [EDITS[0].prompt, "Who built the town", EDITS[1].prompt]
    by_hand = [f"{EDITS[0].text} {asked[0]}", asked[1], f"{EDITS[1].text} {asked[2]}"]
    targets = ["Velmar", "nobody", "the Tellin company"]
    assert editor.generate(asked, 6) == model.generate(by_hand, max_new_tokens=6)
    assert shelf.asked == [asked]  # once, and without anything before it
    for now, was in zip(editor.score(asked, targets), model.score(by_hand, targets), strict=True):
        np.testing.assert_array_equal(now, was)
    for now, was in zip(editor.greedy_matches(asked, targets), model.greedy_matches(by_hand, targets), strict=True):
        np.testing.assert_array_equal(now, was)
    given = tokenizer(by_hand[0], return_tensors="pt")
    written = model.model.generate(
        input_ids=given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=6, do_sample=False
    )
    plain = tokenizer.decode(written[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    assert editor.generate(asked[:1], 6) == [plain]
    assert editor.stored_bytes == sum(len(edit.text) for edit in EDITS)
    assert editor.bytes_per_edit == editor.stored_bytes / 3
    editor.forget(["1"])
    assert editor.generate(asked[:1], 6) == model.generate(asked[:1], max_new_tokens=6)
    editor.reset()
    assert (shelf.edits, editor.stored_bytes) == ({}, 0)
    assert editor.generate(asked, 6) == model.generate(asked, max_new_tokens=6)


def test_a_template_says_how_the_text_stands_there(model):
    shelf = Shelf()
    editor = TextPrefix(model, shelf.retrieve, shelf, template="It is known that {edit}.\n{prompt}")
    editor.edit([Edit("1", "Brace {x} is", "{y}")])
    hand = model.score(["It is known that Brace {x} is {y}.\nBrace {x} is"], ["Velmar"])
    np.testing.assert_array_equal(editor.score(["Brace {x} is"], ["Velmar"])[0], hand[0])


def test_the_texts_of_a_memory_are_those_that_fire():
    def decide(prompts):
        stored = SimpleNamespace(edit=EDITS[0])
        return [SimpleNamespace(edit=stored, fired=prompt == "yes") for prompt in prompts]

    assert fired_texts(decide)(["yes", "no"]) == [EDITS[0].text, None]


# all of them ----------------------------------------------------------------------------------------------------------


def rivals(model):
    shelf = Shelf()
    return {"none": NoEdit(model), "text": TextPrefix(model, shelf.retrieve, shelf),
            "lora": LoraTune(model, Tuning(4, 1e-2))}  # fmt: skip


@pytest.mark.parametrize("kind", ["none", "text", "lora"])
def test_what_is_said_does_not_hang_on_the_batch(model, kind):
    editor = rivals(model)[kind]
    editor.edit(EDITS)
    asked = [*(edit.prompt for edit in EDITS), "Tellin", "The town of Velmar lies in the marshes of the north and is"]
    targets = ["Velmar", "the Tellin company", "Tellin", "painter", "old"]
    apart = [editor.generate([prompt], 6)[0] for prompt in asked]
    assert editor.generate(asked, 6) == apart
    for number, together in enumerate(editor.score(asked, targets)):
        alone = editor.score([asked[number]], [targets[number]])[0]
        np.testing.assert_allclose(together, alone, atol=2e-5, rtol=1e-5)


def test_the_unedited_model_learns_nothing(model):
    editor, before, asked = NoEdit(model), weights(model), [edit.prompt for edit in EDITS]
    said = model.generate(asked, max_new_tokens=6)
    editor.edit(EDITS)
    assert editor.generate(asked, 6) == said
    assert not changed(model, before)
    assert (editor.stored_bytes, editor.bytes_per_edit) == (0, 0)
    editor.forget(["2"])
    assert list(editor.edits) == ["1", "3"]
    editor.reset()
    assert not editor.edits


@pytest.mark.parametrize("kind", ["none", "text", "lora", "all"])
def test_the_same_stream_judges_them(model, kind):
    edits = [
        Edit(edit.id, edit.prompt, edit.target, probes=(probe(edit.id, "locality", "Velmar is a", ""),))
        for edit in EDITS
    ]
    editor = KINDS["all"](model) if kind == "all" else rivals(model)[kind]
    report = run(editor, edits, Stream(max_new_tokens=8, timed=2))
    results = report.results()
    assert results["test/edits"] == 3
    assert results["test/edit_seconds"] > 0
    assert [point.edits for point in report.curve] == [1, 3]
    tuned = kind in ("lora", "all")
    assert results["test/immediate/reliability/forced"] == 1 if tuned else results["test/reliability/forced"] < 1
    assert (results["test/locality/forced"] < 1) == tuned if kind != "text" else True


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([Edit("1", " ", "Velmar")], "edit '1': prompt ' ', target 'Velmar': wanted both"),
        ([Edit("1", "Velmar is", "", where="edits.jsonl:3")], "edits.jsonl:3: prompt 'Velmar is', target ''"),
        ([EDITS[0], EDITS[0]], "edit '1': the id '1' was taught before"),
        ([Edit("9", "Velmar " * 3000, "Velmar")], "edit '9': prompt and target have 3... tokens, and the model reads"),
    ],
)
def test_edits_that_cannot_be_learned_are_refused(model, edits, message):
    before = weights(model)
    editor = FineTune(model, QUICK)
    with pytest.raises(DataError, match=message):
        editor.edit(edits)
    assert not changed(model, before)
    assert not editor.edits


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: Tuning(steps=0), "tuning.steps is 0: give at least 1"),
        (lambda model: Tuning(batch=0), "tuning.batch is 0"),
        (lambda model: Tuning(learning_rate=0.0), "tuning.learning_rate is 0.0"),
        (lambda model: Tuning(until=1.5), "tuning.until is 1.5"),
        (lambda model: FineTune(model, layer=2), "layer is 2, and the model has 2: give 0 to 1"),
        (lambda model: FineTune(model, bound=0.0), "bound is 0.0"),
        (lambda model: FineTune(model, bound_from="now"), "bound_from is 'now', wanted 'edit' or 'base'"),
        (lambda model: LoraTune(model, lora=Lora(dropout=0.1)), "lora.dropout is 0.1"),
        (lambda model: LoraTune(model, lora=Lora(targets=["x_proj"])), "no linear layer is named x_proj"),
        (lambda model: TextPrefix(model, len, Shelf(), "{prompt} {edit}"), r"wanted \{edit\} once"),
        (lambda model: TextPrefix(model, len, Shelf(), "{edit} {prompt}."), r"at its end \{prompt\}"),
        (lambda model: TextPrefix(model, len, Shelf(), "{edit"), "the template of text prefixes is '{edit'"),
        (lambda model: NoEdit(model).forget(["7"]), "was not taught '7'; it was taught nothing"),
    ],
)
def test_bad_settings_are_refused(model, make, message):
    with pytest.raises(DataError, match=message):
        make(model)


def test_weights_that_cannot_be_trained_are_refused(model):
    half = PrefixedModel(model.model.half(), model.tokenizer)
    with pytest.raises(DataError, match=r"is in torch\.float16: fine-tuning wants float32 or bfloat16"):
        FineTune(half)


def test_a_retriever_that_leaves_a_prompt_out_is_told(model):
    with pytest.raises(ValueError, match="retrieve gave 1 texts for 2 prompts"):
        TextPrefix(model, lambda prompts: [None], Shelf()).generate(["Velmar", "Tellin"])
