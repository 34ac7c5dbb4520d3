"""An editor answers by the edit that fired and by nothing else; edits outlive it, and what does not belong together is
refused before anything is read.
"""

import ast
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_causal
from peft import PeftModel
from tiny_memory import BRIDGE, EDITS, OTHERS, PAINTER, TOWN, make_base, make_run, save_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

import kedit.recipe
from kedit.editing.editor import Editor
from kedit.editing.edits import Edit
from kedit.editing.judging import Judged
from kedit.editing.sources import DataError
from kedit.lm.backbones import load_tokenizer
from kedit.recipe import encoding
from kedit.recipe import trained as trained_file
from kedit.recipe.editor import RecipeEditor
from kedit.recipe.prefix import PrefixedModel
from kedit.recipe.trained import encoder_hash, find_trained, load_networks, read_trained
from kedit.running.export import export

PROMPTS = [BRIDGE.prompt, OTHERS[0], TOWN.prompt]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {name: make_base(folder / name, name) for name in ("gpt2", "llama", "t5")}


@pytest.fixture(scope="module")
def template(bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("template") / "run"
    make_run(folder, bases["llama"], calibration=OTHERS)
    return folder


@pytest.fixture
def run(template, tmp_path):
    return shutil.copytree(template, tmp_path / "checkpoints" / "run")


@pytest.fixture
def editor(run):
    with RecipeEditor.from_run(run, device="cpu") as editor:
        yield editor


def bare(base, prompts, **options):
    """What the model alone says, by transformers alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    tokenizer.padding_side = "left"
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    ids = model.generate(**inputs, do_sample=False, **options)[:, inputs["input_ids"].shape[1] :]
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


# answers --------------------------------------------------------------------------------------------------------------


def test_it_is_an_editor_that_can_be_judged(editor):
    assert isinstance(editor, Editor)
    assert isinstance(editor, Judged)


def test_an_editor_imports_no_lightning_and_no_training():
    folder = Path(kedit.recipe.__path__[0])
    seen, todo = set(), ["editor"]
    while todo:
        seen.add(name := todo.pop())
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(one.startswith("lightning") for one in names), name
            own = {one.removeprefix("kedit.recipe.") for one in names if one.startswith("kedit.recipe.")}
            todo += sorted(own - seen)
    assert seen.isdisjoint({"module", "data", "trial", "loss", "objective"})
    assert {"memory", "trained", "repository", "prefix"} <= seen


def test_what_no_edit_concerns_is_answered_as_by_the_model_alone(editor, bases):
    without = bare(bases["llama"], PROMPTS, max_new_tokens=8)
    assert editor.generate(PROMPTS, 8) == without
    editor.edit([PAINTER])
    assert editor.generate(PROMPTS, 8) == without
    editor.edit(EDITS)
    answers = editor.generate(PROMPTS, 8)
    assert answers[0] != without[0]
    assert answers[1] == without[1]
    assert answers[2] != without[2]


def test_the_answer_is_written_behind_the_prompt_vectors_of_the_edit(editor):
    editor.edit(EDITS)
    decisions = editor.decide(PROMPTS)
    vectors = editor.memory.vectors(decisions)
    assert editor.generate(PROMPTS, 8) == editor.model.generate(PROMPTS, vectors, max_new_tokens=8)
    targets = ["1893", "north", "heron"]
    for ours, theirs in zip(editor.score(PROMPTS, targets), editor.model.score(PROMPTS, targets, vectors), strict=True):
        assert np.array_equal(ours, theirs)
    matches = editor.model.greedy_matches(PROMPTS, targets, vectors)
    tokens = editor.greedy_tokens(PROMPTS, targets)
    for ours, theirs, token in zip(editor.greedy_matches(PROMPTS, targets), matches, tokens, strict=True):
        assert ours.tolist() == theirs.tolist() == (token.likeliest == token.target).tolist()


def test_answers_with_and_without_the_memory_come_with_their_decision(editor, bases):
    editor.edit(EDITS)
    answers = editor.ask(PROMPTS, max_new_tokens=8)
    assert [one.prompt for one in answers] == PROMPTS
    assert [one.without for one in answers] == bare(bases["llama"], PROMPTS, max_new_tokens=8)
    assert [one.answer != one.without for one in answers] == [True, False, True]
    assert [one.decision.fired for one in answers] == [True, False, True]
    assert [one.decision.edit.id for one in answers if one.decision.fired] == ["bridge", "town"]
    assert [one.answer for one in answers] == editor.generate(PROMPTS, 8)


def test_what_was_decided_is_kept_for_the_whole_answer(editor, monkeypatch):
    editor.edit(EDITS)
    decisions = editor.decide(PROMPTS)
    asked = []
    monkeypatch.setattr(editor.memory, "decide", lambda queries: asked.append(list(queries)) or decisions)
    assert editor.generate(PROMPTS, 12) and asked == [PROMPTS]  # noqa: PT018
    editor.generate(PROMPTS, 4, decisions=decisions)
    assert len(asked) == 1
    with pytest.raises(DataError, match="3 decisions for 1 prompts"):
        editor.generate(PROMPTS[:1], decisions=decisions)


def test_in_a_chat_retrieval_sees_the_users_words_only(editor):
    editor.edit(EDITS)
    chat = PrefixedModel(editor.model.model, editor.model.tokenizer, chat=True)
    vectors = editor.memory.vectors(editor.decide(PROMPTS))
    written = editor.generate(PROMPTS, 6, chat=True)
    assert written == chat.generate(PROMPTS, vectors, max_new_tokens=6)
    assert written != editor.generate(PROMPTS, 6)
    assert [one.decision.fired for one in editor.ask(PROMPTS, 2, chat=True)] == [True, False, True]


def test_reset_gives_the_model_alone_again(editor, bases):
    editor.edit(EDITS)
    assert [one.id for one in editor.forget("town")] == ["town"]
    assert [one.fired for one in editor.decide(PROMPTS)] == [True, False, False]
    editor.reset()
    assert editor.generate(PROMPTS, 8) == bare(bases["llama"], PROMPTS, max_new_tokens=8)
    assert len(editor.memory) == 0


def test_edits_outlive_their_editor(run):
    with RecipeEditor.from_run(run, device="cpu") as editor:
        editor.edit(EDITS, source="first")
        answers = editor.ask(PROMPTS, 6)
        with pytest.raises(DataError, match="another process writes"):
            RecipeEditor.from_run(run, device="cpu")
    with RecipeEditor.from_run(run, device="cpu") as editor:
        assert editor.ask(PROMPTS, 6) == answers
        assert editor.decide(PROMPTS)[0].edit.source == "first"
    assert (run / "edits").is_dir()


def test_what_an_edit_is_found_by_is_made_with_it(editor, monkeypatch):
    for edits, forgotten in ((EDITS[:2], []), ([TOWN], ["bridge"])):
        editor.forget(forgotten)
        editor.edit(edits)
        with monkeypatch.context() as patch:  # asking fills nothing
            for what in ("add", "remove"):
                patch.setattr(editor.memory.index, what, None)
            patch.setattr(editor.memory.gate, "observe", None)
            assert all(one.fired for one in editor.decide([edit.prompt for edit in edits]))


def test_faiss_finds_the_same(run):
    pytest.importorskip("faiss", reason="FAISS is an extra")
    with RecipeEditor.from_run(run, device="cpu") as editor:
        editor.edit(EDITS)
        decisions = editor.decide(PROMPTS)
    with RecipeEditor.from_run(run, device="cpu", faiss="Flat") as editor:
        for ours, theirs in zip(editor.decide(PROMPTS), decisions, strict=True):
            assert (ours.edit, ours.fired) == (theirs.edit, theirs.fired)
        editor.forget(["town"])
        assert [one.fired for one in editor.decide(PROMPTS)] == [True, False, False]


def test_an_unknown_index_is_refused(run):
    with pytest.raises(DataError, match="faiss"):
        RecipeEditor.from_run(run, device="cpu", faiss="Flatt")


def test_a_repository_may_lie_elsewhere(run, tmp_path):
    with RecipeEditor.from_run(run, tmp_path / "mine", device="cpu") as editor:
        editor.edit([TOWN])
    with RecipeEditor.from_run(run, device="cpu") as editor:
        assert not editor.decide([TOWN.prompt])[0].fired
    with RecipeEditor.from_run(run, str(tmp_path / "mine"), device="cpu", read_only=True) as editor:
        assert editor.decide([TOWN.prompt])[0].fired


def test_an_encoder_decoder_is_edited_too(bases, tmp_path):
    make_run(tmp_path / "run", bases["t5"])
    with RecipeEditor.from_run(tmp_path / "run", device="cpu") as editor:
        without = editor.generate(PROMPTS, 8)
        editor.edit(EDITS)
        answers = editor.ask(PROMPTS, 8)
        assert [one.without for one in answers] == without
        assert [one.decision.fired for one in answers] == [True, False, True]
        assert not torch.equal(*map(torch.from_numpy, (editor.score(PROMPTS[:1], ["1893"])[0],
                                                       editor.model.score(PROMPTS[:1], ["1893"])[0])))  # fmt: skip
        with pytest.raises(DataError, match="encoder-decoder"):
            editor.save_prompt("town", tmp_path / "peft")


# what belongs together ------------------------------------------------------------------------------------------------


def test_keys_of_other_networks_are_refused_with_both_hashes_and_the_way_out(run, bases, template):
    with RecipeEditor.from_run(run, device="cpu") as editor:
        editor.edit(EDITS)
    before = encoder_hash(load_networks(template)[0].state_dict())
    other = make_run(run, bases["llama"], seed=1)
    with pytest.raises(DataError, match="reencode") as caught:
        RecipeEditor.from_run(run, device="cpu")
    assert before in str(caught.value)
    assert encoder_hash(other.state_dict()) in str(caught.value)


def test_a_language_model_that_is_at_hand_is_used(run, bases):
    model = AutoModelForCausalLM.from_pretrained(bases["llama"])
    with RecipeEditor.from_run(run, model=model) as editor:
        assert editor.model.model is model
    with pytest.raises(DataError, match=r"16 numbers, those of .*llama.*, for which .*run was trained, 32"):
        RecipeEditor.from_run(run, model=tiny_causal("llama", 400, hidden_size=16, num_attention_heads=2))
    RecipeEditor.from_run(run, device="cpu").close()  # the repository was let go


def test_the_language_model_may_have_moved(run, bases, tmp_path, tokenizer_folders):
    moved = shutil.copytree(bases["llama"], tmp_path / "moved")
    with RecipeEditor.from_run(run, device="cpu", base=str(moved), dtype="bfloat16") as editor:
        assert next(editor.model.model.parameters()).dtype == torch.bfloat16
        editor.edit(EDITS)
        assert editor.ask(PROMPTS, 4)[0].decision.fired
    with pytest.raises(DataError, match="its tokenizer is not that of the language model"):
        RecipeEditor.from_run(run, device="cpu", base=tokenizer_folders["t5"])
    (moved / "config.json").write_text(json.dumps({"model_type": "opt"}))
    with pytest.raises(DataError, match="is a opt, wanted one of"):
        RecipeEditor.from_run(run, device="cpu", base=str(moved))


def test_a_run_is_found_by_name_folder_or_checkpoint(run, monkeypatch):
    monkeypatch.chdir(run.parents[1])
    assert find_trained("run").folder == Path("checkpoints/run")
    assert find_trained(run / "last.ckpt") == find_trained(run)
    shutil.copytree(run, run.parent / "tiny-3")
    assert find_trained("tiny").folder == Path("checkpoints/tiny-3")
    for name in ("nobody", "some/where"):
        with pytest.raises(DataError, match="no such run"):
            find_trained(name)


def test_of_a_runs_checkpoints_the_best_is_taken(run, bases):
    networks = load_networks(run)[0]
    torch.nn.init.constant_(networks.sentinel.requires_grad_(False), 0.25)
    save_checkpoint(run, networks, "best.ckpt")
    state = torch.load(run / "last.ckpt")
    state["callbacks"] = {"ModelCheckpoint{}": {"monitor": "val/score", "best_model_path": "elsewhere/best.ckpt"}}
    torch.save(state, run / "last.ckpt")
    assert float(load_networks(run)[0].sentinel) == 0.25


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "memory" / "memory.json").unlink(), "no run of RECIPE"),
        (lambda run: (run / "memory" / "memory.json").write_text("{"), "damaged"),
        (lambda run: (run / "memory" / "memory.json").write_text('{"format": 9}'), "format 9, wanted 2"),
        (lambda run: (run / "last.ckpt").write_bytes(b""), "no complete checkpoint"),
        (
            lambda run: torch.save({"state_dict": {"model.x": torch.ones(1)}}, run / "last.ckpt"),
            "no tensor named networks",
        ),
        (lambda run: change(run, sentinel=torch.tensor([float("nan")])), "sentinel is not finite"),
        (lambda run: change(run, sentinel=torch.ones(2)), "sentinel is .2,., wanted"),
        (lambda run: change(run, other=torch.ones(2)), "other is unknown"),
        (lambda run: describe(run, sizes={"tokns": 3}), "sizes .* are none of SlotNetworks"),
        (lambda run: describe(run, width=16), "does not fit memory.json"),
        (lambda run: (run / "memory" / "calibration.jsonl").write_text('{"txt": 1}'), "calibration.jsonl:1: no 'text'"),
    ],
)
def test_a_damaged_run_is_refused(run, damage, message):
    damage(run)
    with pytest.raises(DataError, match=message):
        RecipeEditor.from_run(run, device="cpu")
    assert not (run / "edits").exists()


def change(run, **tensors):
    state = torch.load(run / "last.ckpt")
    state["state_dict"] |= {f"networks.{name}": tensor for name, tensor in tensors.items()}
    torch.save(state, run / "last.ckpt")


def describe(run, **values):
    file = run / "memory" / "memory.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_checkpoint_of_deepspeed_is_to_be_exported_first(run):
    folder = run / "epoch=1.ckpt"
    (folder / "checkpoint").mkdir(parents=True)
    shutil.copy(run / "last.ckpt", folder / "checkpoint" / "mp_rank_00_model_states.pt")
    with pytest.raises(DataError, match=r"python -m kedit export --checkpoint .*epoch=1.ckpt"):
        RecipeEditor.from_run(folder, device="cpu")
    (folder / "checkpoint" / "mp_rank_00_model_states.pt").write_bytes(b"")
    with pytest.raises(DataError, match="is incomplete"):
        RecipeEditor.from_run(folder, device="cpu")


# calibration ----------------------------------------------------------------------------------------------------------


def test_texts_for_calibration_are_encoded_once(run, bases, monkeypatch):
    def opened():
        counts.clear()
        with RecipeEditor.from_run(run, device="cpu") as editor:
            return editor.memory.gate.queries_CD

    counts = []
    encode = encoding.encode_queries
    monkeypatch.setattr(encoding, "encode_queries", lambda *given: counts.append(given[2]) or encode(*given))
    first = opened()
    assert counts == [OTHERS]
    assert torch.equal(opened(), first)
    assert counts == []
    (run / "memory" / "calibration.jsonl").write_text('{"text": "heron"}\n')
    assert opened().shape == (1, 16)
    assert counts == [["heron"]]
    (run / "memory" / "calibration.safetensors").write_bytes(b"torn")
    opened()
    assert counts == [["heron"]]
    # a folder that may only be read
    (run / "memory" / "calibration.safetensors").unlink()

    def full(*_, **__):
        raise OSError(30, "read-only")

    monkeypatch.setattr(encoding, "save_file", full)
    opened(), opened()
    assert counts == [["heron"]]
    (run / "memory" / "calibration.jsonl").unlink()
    assert opened().shape == (0, 16)


# export ---------------------------------------------------------------------------------------------------------------


def test_an_export_answers_as_its_run(run, tmp_path, capsys):
    with RecipeEditor.from_run(run, device="cpu") as editor:
        editor.edit(EDITS)
        answers = editor.ask(PROMPTS, 6)
    output = export(run, tmp_path / "out")
    assert "MiB" in capsys.readouterr().out
    assert {file.name for file in output.iterdir()} == {
        "README.md", "memory.json", "networks.safetensors", "calibration.jsonl", "trunk"}  # fmt: skip
    card = (output / "README.md").read_text()
    assert "RecipeEditor.from_run" in card
    assert "python -m kedit ask" in card
    same = encoder_hash(load_networks(output)[0].state_dict())
    assert same == encoder_hash(load_networks(run)[0].state_dict())
    with RecipeEditor.from_run(output, run / "edits", device="cpu") as editor:
        assert editor.ask(PROMPTS, 6) == answers
    export(run, output, dtype="float16")
    assert load_networks(output)[0].slot_copy.weight.dtype == torch.float32
    (output / "networks.safetensors").write_bytes(b"torn")
    with pytest.raises(DataError, match="damaged or cut off"):
        load_networks(output)


def test_an_export_that_cannot_be_is_refused(run, tmp_path):
    with pytest.raises(DataError, match="leave out --form adapter"):
        export(run, tmp_path / "out", form="adapter")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(DataError, match="not empty"):
        export(run, tmp_path / "full")
    torch.save({"state_dict": {"model.x": torch.ones(1)}}, run / "last.ckpt")
    with pytest.raises(DataError, match="no tensor named networks"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_papers_networks_go_the_same_way(bases, tmp_path):
    sizes = {"tokens": 2, "knowledge_width": 16, "sentinel_tokens": 2}
    made = make_run(tmp_path / "run", bases["gpt2"], sizes=sizes, reference=True, key_reads_target=True)
    networks, texts, trained = load_networks(tmp_path / "run")
    assert type(networks).__name__ == "PaperNetworks"
    assert trained.reference
    batch = texts.batch([TOWN.text])
    with torch.no_grad():
        assert torch.equal(networks.keys(batch), made.keys(batch))
    with RecipeEditor.from_run(tmp_path / "run", device="cpu") as editor:
        editor.edit(EDITS)
        with torch.no_grad():
            assert editor.memory.keys([TOWN])[0] == pytest.approx(made.keys(batch)[0].numpy(), abs=1e-5)
        assert len(editor.memory.vectors(editor.decide(PROMPTS))) == 3


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_peft_puts_the_prompt_vectors_of_an_edit_where_we_do(bases, tmp_path, name):
    make_run(tmp_path / "run", bases[name])
    with RecipeEditor.from_run(tmp_path / "run", device="cpu") as editor:
        editor.edit([Edit("long id", TOWN.prompt, TOWN.target)])
        editor.save_prompt("long id", tmp_path / "peft")
        ours = editor.score([TOWN.prompt], ["the north"])[0]
        with pytest.raises(DataError, match="not empty"):
            editor.save_prompt("long id", tmp_path / "peft")
        with pytest.raises(DataError, match="no edit 'nobody'"):
            editor.save_prompt("nobody", tmp_path / "other")
    tokenizer = load_tokenizer(bases[name])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases[name]), tmp_path / "peft").eval()
    ids = torch.tensor([tokenizer(f"{TOWN.prompt} the north")["input_ids"]])
    with torch.no_grad():
        log_probs = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
    vectors = 3
    theirs = [
        -float(log_probs[vectors + place - 1, ids[0, place]]) for place in range(len(ids[0]) - len(ours), len(ids[0]))
    ]
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_a_description_of_another_time_is_read(run):
    describe(run, more="later")
    assert read_trained(run / "memory").width == 32
    assert trained_file.FORMAT == 2
