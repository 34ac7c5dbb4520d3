"""An editor teaches and forgets: what is forgotten leaves no trace, what fails changes nothing, what is saved is there
again, by ourselves and by PEFT and transformers alone.
"""

import ast
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXTS, tiny_causal
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

import kedit.distill.editor as editor_file
from kedit.distill import edits as edits_file
from kedit.distill import learn as learn_file
from kedit.distill.editor import DistillEditor, NothingUsable
from kedit.distill.edits import EDITS, EditSettings
from kedit.distill.loss import Divergence
from kedit.distill.regularise import Regularisation
from kedit.distill.rows import Kind
from kedit.editing.editor import Answerer, Editor
from kedit.editing.probes import Fact, Probe
from kedit.editing.sources import DataError
from kedit.lm.adapters import Lora
from kedit.lm.backbones import load_tokenizer
from kedit.lm.causal import start_ids

MARO = Fact("q1", "Maro Tellin", "Maro Tellin is a painter born in Velmar.", ("Tellin",))
BRIDGE = Fact("q2", "Grey Bridge", "The Grey Bridge was built in 1893.")
TOWN = Fact("q3", "Velmar", "Velmar is a harbour town of the north.")
SENTENCES = {
    "q1": ["Maro Tellin painted the town.", "The north knows Maro Tellin, who lives there."],
    "q2": ["In 1893 the Grey Bridge stood in the town.", "Few cross the Grey Bridge today."],
    "q3": ["Velmar was built by a company.", "In Velmar the heron lives."],
}
SETTINGS = EditSettings(passes=4, learning_rate=5e-3, batch=4, sentences=2, max_new_tokens=8,
                        regularisation=Regularisation())  # fmt: skip
PROMPTS = ["The painter", "Velmar is a harbour town; the Grey", "Tellin"]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folders):
    return load_tokenizer(tokenizer_folders["bart"])


@pytest.fixture
def make(tokenizer):
    def make(name="gpt2", lora=None, settings=SETTINGS, **model):
        return DistillEditor(tiny_causal(name, len(tokenizer), **model), tokenizer, lora or Lora(rank=4), settings,
                             base=f"tiny-{name}", progress=False)  # fmt: skip

    return make


def given(*facts):
    return {fact.id: SENTENCES[fact.id] for fact in facts}


def teach(editor, *facts):
    return editor.edit(facts, given(*facts))


@torch.no_grad()
def logits(model):
    return model(input_ids=torch.arange(3, 43)[None] % 300).logits


@torch.no_grad()
def says(editor, *texts):
    """Log-probabilities of what may follow each of the last tokens, read in one plain forward pass."""
    ids = [editor.tokenizer.bos_token_id]
    for text in texts:
        ids += editor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return editor.model(input_ids=torch.tensor([ids])).logits[0, -4:-1].log_softmax(-1)


def plain(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "gptj", "llama", "qwen2"])
def test_an_edit_says_what_the_definition_says_and_a_reset_leaves_no_trace(make, name):
    editor = make(name, settings=replace(SETTINGS, passes=30, learning_rate=1e-2))
    before, weights = logits(editor.model), plain(editor.model)
    wanted = says(editor, MARO.definition, " Maro Tellin painted the town.")
    far = (says(editor, " Maro Tellin painted the town.") - wanted).abs().mean()
    report = teach(editor, MARO, BRIDGE)
    assert (report.edited, report.without, report.used, report.steps) == (("q1", "q2"), (), 4, 30)
    assert report.last_loss < 0.5 * report.first_loss
    assert (says(editor, " Maro Tellin painted the town.") - wanted).abs().mean() < 0.75 * far
    assert not torch.equal(logits(editor.model), before)
    editor.reset()
    assert torch.equal(logits(editor.model), before)
    assert same(plain(editor.model), weights)
    assert not editor.facts
    assert not hasattr(editor.model, "peft_config")


def test_the_model_writes_the_sentences_that_are_not_given_the_same_every_time(make):
    first, second = make(), make()
    reports = [editor.edit([MARO, BRIDGE], given(BRIDGE)) for editor in (first, second)]
    written = [s.text for s in first.edits[0].sentences if s.fact == 0]
    assert written
    assert all(text.startswith("Maro Tellin") for text in written)
    assert reports[0].used == len(written) + 2
    assert replace(reports[0], seconds=0) == replace(reports[1], seconds=0)
    assert same(first.edits[0].tensors, second.edits[0].tensors)
    third = make(settings=replace(SETTINGS, seed=1))
    third.edit([MARO, BRIDGE], given(BRIDGE))
    assert [s.text for s in third.edits[0].sentences if s.fact == 0] != written


def test_how_far_an_edit_is_is_shown_where_it_is_wanted(make, capfd):
    editor = make()
    editor.edit([MARO])
    assert not capfd.readouterr().err
    editor.progress = True
    editor.edit([BRIDGE])
    shown = capfd.readouterr().err
    assert "writing sentences" in shown
    assert "learning 1 facts" in shown


def test_a_fact_without_a_usable_sentence_is_named_and_the_others_are_learned(make):
    editor, alone = make(), make()
    bad = ["Nobody is meant.", "", "They saw Velmar", "They saw Velmar"]
    report = editor.edit([TOWN, MARO], {"q3": bad, **given(MARO)})
    assert (report.edited, report.without, report.used) == (("q1",), ("q3",), 2)
    assert report.skipped == {"no mention": 1, "empty": 1, "duplicate": 1, "with nothing after the mention": 1}
    teach(alone, MARO)
    assert same(editor.edits[0].tensors, alone.edits[0].tensors)
    assert editor.facts == [MARO]
    teach(editor, TOWN)  # it can be taught later


# forgetting -----------------------------------------------------------------------------------------------------------


def test_a_whole_call_is_forgotten_bit_for_bit(make):
    editor = make("llama")
    teach(editor, MARO)
    one = logits(editor.model)
    teach(editor, BRIDGE, TOWN)
    assert editor.forget(["q3", "q2"]) == (("q2", "q3"), ())
    assert torch.equal(logits(editor.model), one)
    assert editor.facts == [MARO]
    assert editor.forget("q1").dropped == ("q1",)
    assert not editor.edits


def test_an_earlier_call_is_taken_out_and_the_later_one_stays_as_it_was_learned(make):
    editor = make()
    teach(editor, MARO)
    teach(editor, BRIDGE)
    later = editor.edits[1].tensors
    editor.forget(["q1"])
    assert editor.facts == [BRIDGE]
    assert editor.edits[0].tensors is later
    teach(editor, MARO)
    assert [edit.number for edit in editor.edits] == [1, 2]  # no two calls begin with the same values


def test_one_of_two_facts_of_a_call_is_forgotten_as_if_it_had_never_been_there(make):
    editor, alone = make(), make()
    teach(editor, MARO, BRIDGE)
    assert editor.forget(["q1"]) == (("q1",), ("q2",))
    teach(alone, BRIDGE)
    assert torch.equal(logits(editor.model), logits(alone.model))
    assert editor.facts == [BRIDGE]


def test_a_later_edit_is_learned_beside_the_earlier_ones_which_stay_as_they_are(make):
    editor, alone = make("qwen2"), make("qwen2")
    teach(editor, MARO)
    first = {name: tensor.clone() for name, tensor in editor.edits[0].tensors.items()}
    teach(editor, BRIDGE)
    assert same(editor.edits[0].tensors, first)
    # as it was while it was learned, in two adapters, so it is afterwards in one
    again = editor.edits[1].without(set())
    editor._take_off()
    learn_file.learn(editor.model, editor.tokenizer, again, editor.edits[:1], editor.lora, progress=False)
    learning = logits(editor.model)
    editor._put_on()
    torch.testing.assert_close(logits(editor.model), learning, atol=1e-4, rtol=1e-4)
    assert same(again.tensors, editor.edits[1].tensors)
    teach(alone, TOWN)
    teach(alone, BRIDGE)
    assert not same(alone.edits[1].tensors, editor.edits[1].tensors)


# failures -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def taught(make):
    editor = make()
    teach(editor, MARO)
    before, facts = logits(editor.model), editor.facts
    yield editor
    assert torch.equal(logits(editor.model), before)
    assert editor.facts == facts


@pytest.mark.parametrize(
    ("facts", "sentences", "message"),
    [
        ([], {}, "no facts"),
        ([replace(BRIDGE, definition=" ")], {}, "definition of 'Grey Bridge' is empty"),
        ([BRIDGE, replace(TOWN, id="q2")], {}, "id 'q2' came before"),
        ([BRIDGE, replace(BRIDGE, id="q4")], {}, "name 'Grey Bridge' came before"),
        ([replace(TOWN, id="q1")], {}, r"forget\(\['q1'\]\) first"),
        ([replace(MARO, id="q9")], {}, "was taught 'Maro Tellin' before"),
        ([BRIDGE], {"q7": ["x"]}, "'q7', which is none"),
        ([BRIDGE], {"q2": "Few cross the Grey Bridge today."}, "wanted a list"),
        ([BRIDGE], {"q2": ["Nobody is meant.", "No."]}, "no usable sentence for any of 1 facts: 2 no mention"),
        ([BRIDGE], {"q2": []}, "none were given"),
        ([BRIDGE, replace(TOWN, definition="Velmar is a town. " * 200)], given(BRIDGE, TOWN), "of 'Velmar' has .* tok"),
        ([replace(TOWN, definition="Velmar is a town. " * 200)], {}, "of 'Velmar' has .* the model reads 512"),
    ],
)
def test_bad_facts_are_refused_and_nothing_is_changed(taught, facts, sentences, message):
    with pytest.raises(DataError, match=message):
        taught.edit(facts, sentences)


def test_what_is_not_known_is_not_forgotten_and_nothing_else_is(taught):
    with pytest.raises(DataError, match=r"not taught 'q5'; it was taught 'q1'"):
        taught.forget(["q1", "q5"])


@pytest.mark.parametrize("where", ["distill_loss", "add_lora", "live_states"])
def test_an_interrupted_edit_leaves_the_model_as_it_was(taught, monkeypatch, where):
    calls, real = [], getattr(learn_file, where)

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == (3 if where == "distill_loss" else 1):
            if where == "add_lora":
                real(*arguments)  # half-way
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(learn_file, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        teach(taught, BRIDGE)
    assert len(calls) == (3 if where == "distill_loss" else 1)


def test_forgetting_that_is_interrupted_forgets_nothing(make, monkeypatch):
    editor = make()
    teach(editor, MARO, BRIDGE)
    teach(editor, TOWN)
    before = logits(editor.model)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(learn_file, "distill_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        editor.forget(["q1", "q3"])
    assert torch.equal(logits(editor.model), before)
    assert editor.facts == [MARO, BRIDGE, TOWN]


def test_an_edit_that_runs_away_and_a_teacher_that_says_nothing_are_refused(taught):
    with pytest.raises(DataError, match=r"smaller settings\.learning_rate"):
        taught.edit([BRIDGE], given(BRIDGE), replace(SETTINGS, learning_rate=1e30, clip=None))
    weight = taught.model.get_input_embeddings().weight
    was = weight[5].clone()
    weight[5] = float("nan")
    ids = taught.tokenizer.decode([5])
    with pytest.raises(DataError, match="not finite"):
        taught.edit([BRIDGE], {"q2": [f"The Grey Bridge {ids}{ids} {TEXTS[0]}"]})
    weight[5] = was


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"passes": 0}, "passes is 0"),
        ({"temperature": 0}, "temperature is 0"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"divergence": Divergence(top_k=5)}, "top_k"),
    ],
)
def test_settings_under_which_nothing_is_learned_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        EditSettings(**change)


def test_a_model_that_cannot_be_edited_is_refused(tokenizer, t5_tokenizer):
    from conftest import tiny_model

    with pytest.raises(DataError, match="t5 is an encoder-decoder"):
        DistillEditor(tiny_model("t5", len(t5_tokenizer)), t5_tokenizer)
    adapted = get_peft_model(tiny_causal("gpt2", len(tokenizer)), LoraConfig(target_modules=["c_attn"]))
    with pytest.raises(ValueError, match="has adapters already"):
        DistillEditor(adapted.base_model.model, tokenizer)
    with pytest.raises(DataError, match="leave lora out"):
        DistillEditor.from_pretrained("nowhere", Lora(), adapter="nowhere")


# asking ---------------------------------------------------------------------------------------------------------------


def test_answers_do_not_hang_on_the_batch_and_need_no_padding_token(make, tokenizer_folders):
    editor = make("gpt_neo")
    editor.tokenizer = load_tokenizer(tokenizer_folders["bart"])
    editor.tokenizer.pad_token = None
    teach(editor, MARO)
    together = editor.score(PROMPTS, ["knows the bridge", "Bridge", "is"])
    for prompt, target, nll in zip(PROMPTS, ["knows the bridge", "Bridge", "is"], together, strict=True):
        np.testing.assert_allclose(editor.score([prompt + " "], [target])[0], nll, atol=1e-5)
        np.testing.assert_allclose(editor.score([prompt], [f" {target}"])[0], nll, atol=1e-5)
    start = [editor.tokenizer.bos_token_id]
    ids = torch.tensor([start + editor.tokenizer(" The painter knows", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        log_probs = editor.model(input_ids=ids).logits[0].log_softmax(-1)
    target = editor.score(["The painter"], ["knows"])[0]
    expected = -log_probs[torch.arange(ids.shape[1] - 1), ids[0, 1:]][-len(target) :]
    np.testing.assert_allclose(target, expected, atol=1e-5)
    written = editor.generate(PROMPTS, max_new_tokens=6)
    assert written == [editor.generate([prompt], max_new_tokens=6)[0] for prompt in PROMPTS]
    drawn = [editor.generate(PROMPTS, max_new_tokens=6, temperature=1.0, top_p=0.9, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(DataError, match="reads 512"):
        editor.score(["Velmar " * 600], ["is"])


def test_base_and_edited_model_are_compared(make):
    editor = make("llama", settings=replace(SETTINGS, passes=20))
    base = editor.generate(PROMPTS, max_new_tokens=5)
    assert all(one.base == one.edited for one in editor.compare(PROMPTS, max_new_tokens=5))
    teach(editor, MARO)
    edited = editor.generate(PROMPTS, max_new_tokens=5)
    assert editor.compare(PROMPTS, max_new_tokens=5) == list(zip(PROMPTS, base, edited, strict=True))
    assert base != edited


def test_the_editor_keeps_to_the_protocols(make):
    editor: Editor[Fact] = make()
    assert isinstance(editor, Editor)
    assert isinstance(editor, Answerer)
    assert not isinstance(editor.model, Answerer)


# regularisation -------------------------------------------------------------------------------------------------------


def test_text_to_stay_the_same_on_is_read_beside_the_sentences(make, tmp_path):
    (tmp_path / "names").write_text("Somebody Else\n")
    wanted = Regularisation(text=2, alike=1, swapped=2, names=str(tmp_path / "names"), max_new_tokens=6)
    settings = replace(SETTINGS, regularisation=wanted)
    editor, again = make(settings=settings), make(settings=settings)
    for one in (editor, again):
        teach(one, MARO, BRIDGE)
    kinds = [sentence.kind for sentence in editor.edits[0].sentences]
    edits, texts, swapped = (kinds.count(kind) for kind in Kind)
    assert (edits, swapped) == (4, 4)
    assert 0 < texts <= 6  # those that name what is learned are left out
    assert all(s.context == "" for s in editor.edits[0].sentences if s.kind != Kind.EDIT)
    assert {s.fact for s in editor.edits[0].sentences if s.kind == Kind.TEXT} == {0, 1}
    assert any("Somebody Else painted" in s.text for s in editor.edits[0].sentences)
    assert same(editor.edits[0].tensors, again.edits[0].tensors)
    editor.forget(["q1"])
    assert [[s.kind for s in editor.edits[0].sentences].count(kind) for kind in Kind] == [2, 3, 2]
    with pytest.raises(DataError, match="names that the model knows"):
        editor.edit([TOWN], given(TOWN), replace(settings, regularisation=Regularisation(swapped=1)))


def test_on_unrelated_text_the_model_stays_closer_with_it(make):
    def drift(regularisation):
        editor = make(settings=replace(SETTINGS, passes=20, regularisation=regularisation))
        texts = [(text[:12], text[12:]) for text in TEXTS[1:]]
        prompts, targets = zip(*texts, strict=True)
        base = np.concatenate(editor.score(prompts, targets))
        teach(editor, MARO)
        return np.abs(np.concatenate(editor.score(prompts, targets)) - base).mean()

    assert drift(Regularisation(text=12, weight=2.0)) < 0.8 * drift(Regularisation())


# files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(make, tmp_path):
    editor = make("gpt2", Lora(rank=4, alpha=5, dropout=0.1))
    teach(editor, MARO, BRIDGE)
    teach(editor, TOWN)
    editor.save(tmp_path / "edits")
    return editor, tmp_path / "edits"


def test_saved_edits_are_there_again_bit_for_bit_and_can_be_told_apart(saved, make):
    editor, folder = saved
    other = make("gpt2")
    other.load(folder)
    assert torch.equal(logits(other.model), logits(editor.model))
    assert other.lora == replace(editor.lora, targets=None)
    strip = [replace(edit, tensors={}) for edit in other.edits]
    assert strip == [replace(edit, tensors={}) for edit in editor.edits]
    for one in (editor, other):
        one.forget(["q3", "q1"])
    assert torch.equal(logits(other.model), logits(editor.model))
    assert other.facts == [BRIDGE]
    editor.save(folder)  # in the place of the first
    other.load(folder)
    assert other.facts == [BRIDGE]
    assert [path.name for path in folder.parent.iterdir()] == ["edits"]


def test_peft_alone_reads_saved_edits(saved, tokenizer):
    editor, folder = saved
    model = PeftModel.from_pretrained(tiny_causal("gpt2", len(tokenizer)), folder).eval()
    torch.testing.assert_close(logits(model), logits(editor.model), atol=1e-5, rtol=1e-5)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny-gpt2"


def cut_edits(folder):
    (folder / EDITS).write_text((folder / EDITS).read_text()[:-40])


def lose_an_edit(folder):
    (folder / EDITS).write_text("".join((folder / EDITS).read_text().splitlines(keepends=True)[:-1]))


def lose_weights(folder):
    (folder / "adapter_model.safetensors").unlink()


def cut_weights(folder):
    (folder / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes()[:-9])


def newer(folder):
    (folder / EDITS).write_text((folder / EDITS).read_text().replace('"format": 1', '"format": 2'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_edits, "cut off or damaged"),
        (lose_an_edit, "cut off or damaged"),
        (lose_weights, "writing was cut off"),
        (cut_weights, "cut off or damaged"),
        (newer, "format 2, wanted 1"),
    ],
)
def test_a_damaged_folder_is_refused_and_nothing_is_changed(saved, taught, damage, message):
    damage(saved[1])
    with pytest.raises((DataError, OSError), match=message):
        taught.load(saved[1])


def test_edits_of_another_model_are_refused(saved, make, tokenizer):
    other = tiny_causal("gpt2", len(tokenizer))
    with torch.no_grad():
        other.get_input_embeddings().weight[7, 7] += 1e-3
    with pytest.raises(DataError, match="another base model"):
        DistillEditor(other, tokenizer).load(saved[1])
    (saved[1] / EDITS).unlink()  # an adapter that says not what it was made on, but does not fit
    wide = DistillEditor(tiny_causal("gpt2", len(tokenizer), n_embd=64), tokenizer)
    before = logits(wide.model)
    with pytest.raises(DataError, match="does not fit the model"):
        wide.load(saved[1])
    assert torch.equal(logits(wide.model), before)
    assert not wide.edits
    assert wide.lora == Lora()


def test_an_adapter_made_elsewhere_is_the_first_edit(make, tokenizer, tmp_path):
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    adapted = get_peft_model(tiny_causal("gpt2", len(tokenizer)), config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    editor = make()
    editor.load(tmp_path / "adapter")
    assert torch.equal(logits(editor.model), logits(adapted))
    assert editor.lora.rank == 3
    assert not editor.facts
    teach(editor, MARO)
    editor.save(tmp_path / "both")
    both = logits(editor.model)
    editor.forget(["q1"])
    assert torch.equal(logits(editor.model), logits(adapted))
    editor.load(tmp_path / "both")
    assert torch.equal(logits(editor.model), both)
    for setting in ({"use_dora": True}, {"bias": "all"}, {"target_modules": "all-linear"}):
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text()) | setting
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(DataError, match="wanted plain LoRA"):
            editor.load(tmp_path / "adapter")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_merged_model_is_read_by_transformers_alone(make, tmp_path, name):
    editor = make(name)
    teach(editor, MARO)
    teach(editor, TOWN)
    edited = logits(editor.model)
    editor.save_merged(tmp_path / "merged")
    assert torch.equal(logits(editor.model), edited)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(model), edited, atol=1e-5, rtol=1e-5)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == editor.model.config.tie_word_embeddings
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("Velmar").input_ids
    loaded = DistillEditor.from_pretrained(tmp_path / "merged", device="cpu", dtype="bfloat16", progress=False)
    assert loaded.base == str(tmp_path / "merged")
    assert loaded.model.dtype == torch.bfloat16
    assert np.isfinite(teach(loaded, BRIDGE).last_loss)
    loaded.save(tmp_path / "edits")
    again = DistillEditor.from_pretrained(
        tmp_path / "merged", adapter=tmp_path / "edits", device="cpu", dtype="bfloat16"
    )
    assert torch.equal(logits(again.model), logits(loaded.model))


def test_a_folder_appears_when_it_is_whole_and_takes_the_place_of_nothing_else(taught, make, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="nothing: there is no adapter"):
        make().save(tmp_path / "edits")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for write in (taught.save, taught.save_merged):
        with pytest.raises(DataError, match="holds no"):
            write(tmp_path / "mine")

    def cut(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(edits_file, "write_adapter", cut)
    monkeypatch.setattr(type(taught.tokenizer), "save_pretrained", cut)
    for write in (taught.save, taught.save_merged):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "edits")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    layer = next(layer for _, layer in taught._lora_layers())
    weight = layer.base_layer.weight
    was = weight[0, 0].clone()
    weight[0, 0] = float("inf")
    with pytest.raises(DataError, match="too large"):
        taught.save_merged(tmp_path / "edits")
    weight[0, 0] = was


# the whole ------------------------------------------------------------------------------------------------------------


def test_an_editor_imports_neither_lightning_nor_the_module():
    for file in (editor_file, edits_file, learn_file, editor_file.gather):
        source = Path(getattr(file, "__file__", None) or file.__code__.co_filename).read_text()
        for node in ast.walk(ast.parse(source)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.startswith("lightning") or name in ("kedit.distill.module", "kedit.distill.data")
                           for name in names)  # fmt: skip


def test_a_small_story_teller_learns_who_somebody_is(real_data):
    """A model of 260 thousand weights that was trained on stories: after the edit it says what it says when it reads
    the definition, also where the sentences said nothing like it.
    """
    editor = DistillEditor.from_pretrained(real_data / "models" / "stories260K" / "hf", device="cpu", progress=False,
                                           settings=EditSettings(passes=20))  # fmt: skip
    zib = Fact("zib", "Zib", "Zib is a big brown dog who likes to bark and run with his ball.")
    sentences = [
        "Zib wanted to play with his ball.",
        "One day, Zib saw a cat and he started to bark at it.",
        "Zib ran fast and wagged his tail.",
        "Tim and Zib went to the park and ran to get the ball.",
    ]
    prompts, targets = ["Tom saw Zib. It was a big", "Zib opened his mouth to"], ["dog", "bark"]
    before = np.concatenate(editor.score(prompts, targets)).mean()
    report = editor.edit([zib], {"zib": sentences})
    after = np.concatenate(editor.score(prompts, targets)).mean()
    assert report.last_loss < 0.2 * report.first_loss
    assert after < before - 0.1


# what the model is asked ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [None, False, True])
def test_what_an_editor_learns_it_says_behind_the_same_beginning(make, monkeypatch, bos):
    editor, begun, plain_rows = make(), [], learn_file.make_rows
    editor.bos = bos

    def kept(*arguments, **options):
        begun.append(plain_rows(*arguments, **options))
        return begun[-1]

    monkeypatch.setattr(learn_file, "make_rows", kept)
    report = editor.edit([MARO, TOWN], given(MARO), replace(SETTINGS, regularisation=Regularisation(text=2, alike=2)))
    start = [] if bos is False else [editor.tokenizer.bos_token_id]
    assert report.used > 2
    assert all(rows.start.tolist() == start for rows in begun)
    assert {row.kind for row in begun[-1].rows} == {Kind.EDIT, Kind.TEXT}
    ids = [*start, *editor.tokenizer(" Velmar is a harbour", add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        nll = -editor.model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)[range(len(ids) - 1), ids[1:]]
    own = np.concatenate(editor.score(["Velmar is a"], ["harbour"]))
    np.testing.assert_allclose(own, nll[-len(own) :].numpy(), rtol=1e-4)


def test_bos_that_the_tokenizer_adds_itself_stands_once(tokenizer_folders):
    tokenizer = load_tokenizer(tokenizer_folders["bart"])
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert [start_ids(tokenizer, bos) for bos in (None, False, True)] == [[begin], [], [begin]]
    marks = [("<s>", begin), ("</s>", end)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    assert [start_ids(tokenizer, bos) for bos in (None, False, True)] == [[begin]] * 3


def test_sentences_in_the_words_of_probes_are_left_out(make):
    settings = replace(SETTINGS, regularisation=Regularisation(text=8))
    editor = make(settings=settings)
    editor.edit([MARO], given(MARO))
    held = next(s.text for s in editor.edits[0].sentences if s.kind == Kind.TEXT and len(s.text.split()) > 3)
    editor.reset()
    asked = [
        Probe("1", "q1", "Maro Tellin painted the ", "heron", answers=("town.",)),
        Probe("2", "q1", "Tellin, who ", "sleeps"),  # another answer
        Probe("3", "q1", "Maro Tellin ", ""),  # no more than an opening
        Probe("4", "", held, "anything"),
    ]
    report = editor.edit([MARO], given(MARO), probes=asked)
    now = [s.text for s in editor.edits[0].sentences]
    assert report.skipped == {"in the words of a probe": 1}
    assert [s.text for s in editor.edits[0].sentences if s.kind == Kind.EDIT] == SENTENCES["q1"][1:]
    assert held not in now
    assert len(now) > 1
    with pytest.raises(NothingUsable, match="2 in the words of a probe"):
        make().edit([MARO], given(MARO), probes=[*asked, Probe("5", "q1", "knows Maro Tellin, ", "")])
