"""Sampling, generators, and transfer sets that are interrupted."""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kedit.distill import generate, language_model, sampling, server
from kedit.distill.generate import transfer, write_sentences
from kedit.distill.generators import FileSentences, Generator, SourceSentences, SplitDocument, fill, own_seed
from kedit.distill.language_model import ModelGenerator
from kedit.distill.made import MadeTransfer
from kedit.distill.sampling import draw, plan_batches, prompt_ids, sample
from kedit.distill.server import ServerGenerator
from kedit.distill.transfer import Filters, TransferSentence, read_transfer_set
from kedit.editing.probes import Continuation, Fact, Knowledge, KnowledgeSource
from kedit.editing.sources import DataError
from kedit.lm.backbones import Backbone, MadeModel
from kedit.running.functions import call

CAUSAL = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 128, "window_size": 8,
                "attention_types": [[["global", "local"], 1]]},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "rotary_dim": 8},
    "llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
              "intermediate_size": 64, "max_position_embeddings": 128},
    "qwen2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
              "intermediate_size": 64, "max_position_embeddings": 128},
}  # fmt: skip
FACTS = [
    Fact("1", "Maro Tellin", "Maro Tellin is a painter who was born in Velmar.", ("Maro",)),
    Fact("2", "Velmar", "Velmar is a harbour town.", (), "facts.jsonl:2"),
    Fact("3", "Tellin", "Tellin is a species of heron of the north, which lives in the marshes of Velmar."),
]
KNOWLEDGE = Knowledge(FACTS, [])
LOOSE = Filters(min_words_after=0, min_words=1)
FREE = Filters(False, min_words_after=0, min_words=0)


def tiny(kind: str, tokenizer):
    """A random model; its logits are scaled up so that what it draws hangs on what it reads."""
    torch.manual_seed(0)
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer) + 3, tie_word_embeddings=False, **CAUSAL[kind], **special
    )
    model = AutoModelForCausalLM.from_config(config)
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.5)
    return model


@pytest.fixture
def bare(bart_tokenizer):
    """A tokenizer with neither BOS nor pad."""
    bart_tokenizer.bos_token = None
    bart_tokenizer.pad_token = None
    assert bart_tokenizer.pad_token_id is None
    return bart_tokenizer


@pytest.fixture
def folder(bare, tmp_path):
    """A tiny GPT-2 with that tokenizer, on disk."""
    tiny("gpt2", bare).save_pretrained(tmp_path / "model")
    bare.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_row_draws_the_same_alone_and_beside_longer_ones(kind, bare):
    model = tiny(kind, bare).train()
    prompts = [fact.definition for fact in FACTS]
    seeds = [11, 12, 13]
    before = torch.random.get_rng_state()
    together = sample(model, bare, prompts, seed=seeds, temperature=0.8, top_p=0.9, max_new_tokens=24)
    alone = [
        sample(model, bare, [p], seed=[s], temperature=0.8, top_p=0.9, max_new_tokens=24)[0]
        for p, s in zip(prompts, seeds, strict=True)
    ]
    assert together == alone
    assert len(set(together)) == 3
    assert model.training
    assert torch.equal(before, torch.random.get_rng_state())


def test_likeliest_tokens_are_those_of_a_full_pass(bare):
    """The cache, its positions and rows that leave the batch change nothing."""
    model = tiny("gpt2", bare).eval()
    prompts = [fact.definition for fact in FACTS]
    told = []
    stop = lambda text: 9 if len(text) > 9 and "V" in prompts[0] else None  # noqa: E731
    texts = sample(model, bare, prompts, temperature=0, max_new_tokens=10, batch_tokens=60, progress=told.append)
    assert sum(told) == 3
    for prompt, text in zip(prompts, texts, strict=True):
        ids = prompt_ids(bare, [prompt])[0]
        for _ in range(10):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1, : len(bare)].argmax()))
            if ids[-1] == bare.eos_token_id:
                break
        assert bare.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == prompt + text
    cut = sample(model, bare, prompts, temperature=0, max_new_tokens=10, stop=stop)
    assert cut == [text[:9] for text in texts]


def test_draws_follow_the_distribution(monkeypatch):
    logits = torch.tensor([[0.5, 0.2, 0.25, 0.05]]).log()
    uniform = torch.linspace(0, 1, 1001)[:-1]
    drawn = draw(logits.expand(1000, -1), uniform, 1.0, 1.0)
    assert torch.bincount(drawn).tolist() == pytest.approx([500, 200, 250, 50], abs=2)
    nucleus = draw(logits.expand(1000, -1), uniform, 1.0, 0.7)
    assert torch.bincount(nucleus).tolist() == pytest.approx([667, 0, 333], abs=2)
    sharp = draw(logits.expand(1000, -1), uniform, 0.5, 1.0)
    squares = np.square([0.5, 0.2, 0.25, 0.05])
    assert torch.bincount(sharp).tolist() == pytest.approx(1000 * squares / squares.sum(), abs=2)
    monkeypatch.setattr(sampling, "NUCLEUS", 2)  # the first two do not hold so much: all are sorted
    assert torch.equal(nucleus, draw(logits.expand(1000, -1), uniform, 1.0, 0.7))
    # a number at the very end draws no token without probability
    ends = torch.tensor([[0.0, 0.0, -torch.inf]])
    assert draw(ends, torch.tensor([1.0]), 1.0, 1.0).tolist() == [1]


def test_bad_sampling_is_told(bare):
    model = tiny("gpt2", bare)
    assert sample(model, bare, []) == []
    with pytest.raises(DataError, match=r"prompt 1 has .* the 128 that the model reads"):
        sample(model, bare, ["Velmar", "Velmar is a town. " * 40])
    with pytest.raises(DataError, match="prompt 1 holds no token"):
        sample(model, bare, [[5], []])
    with pytest.raises(DataError, match="wanted at least 0, above 0"):
        sample(model, bare, ["Velmar"], top_p=0)
    model.get_output_embeddings().weight.data[5] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        sample(model, bare, ["Velmar"])
    assert prompt_ids(bare, [""]) == [[bare.eos_token_id]]
    bare.eos_token = None
    with pytest.raises(DataError, match="without BOS and EOS"):
        prompt_ids(bare, [""])


def test_eos_ends_a_continuation(bare):
    model = tiny("gpt2", bare)
    model.get_output_embeddings().weight.data.zero_()
    model.generation_config.eos_token_id = [0, 7]
    bare.eos_token = None
    assert sample(model, bare, ["Velmar"], temperature=0) == [""]  # the likeliest of equals is token 0


def test_batches_hold_rows_of_like_length():
    assert plan_batches([3, 9, 3, 50, 2], 1, 19) == [[3], [1], [0, 2, 4]]


# a language model ----------------------------------------------------------------------------------------------------


def test_a_model_writes_from_definitions(folder, tmp_path):
    generator = ModelGenerator(Backbone(str(folder)), max_new_tokens=16, batch_tokens=200)
    path = write_sentences(KNOWLEDGE, generator, tmp_path / "set", LOOSE, 3, seed=5)
    records = lines(path)
    assert [record["fact"] for record in records] == ["1"] * 3 + ["2"] * 3 + ["3"] * 3
    first = records[0]
    assert first["prompt"] == "Maro Tellin is a painter who was born in Velmar."
    assert (first["generator"], first["model"]) == ("ModelGenerator", str(folder))
    assert (first["temperature"], first["top_p"], first["max_new_tokens"]) == (0.9, 0.95, 16)
    assert first["text"].startswith("Maro Tellin")
    assert first["mention"] == [0, 11]
    assert len(first["revision"]) == 16
    assert len({record["seed"] for record in records}) == 9
    assert len({record["text"] for record in records}) == 9
    counts = json.loads((tmp_path / "set" / "counts.json").read_text())
    assert counts["sentences"] == 9
    assert not (tmp_path / "set" / "drafts.jsonl").exists()
    assert "model" not in vars(generator)  # its memory is free
    # any one of them can be drawn again by what stands beside it
    again = sample(generator.model, generator.tokenizer, [f"{first['prompt']} Maro Tellin"], seed=[first["seed"]],
                   temperature=0.9, top_p=0.95, max_new_tokens=16)[0]  # fmt: skip
    assert f"Maro Tellin{again}".startswith(first["text"])


def test_a_chat_model_is_instructed_by_its_template(bare, folder, tmp_path):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    bare.chat_template = template
    bare.save_pretrained(folder)
    generator = ModelGenerator(Backbone(str(folder)), max_new_tokens=8, start_with_name=True,
                               prompts=["Of {name}: {definition}", "{definition}"])  # fmt: skip
    assert generator.describe(KNOWLEDGE)["chat"]
    row = generator._rows([fill(generator.templates[0], FACTS[1])], [FACTS[1]], True)[0]
    assert bare.decode(row) == "<user>Of Velmar: Velmar is a harbour town.<assistant>Velmar"
    records = lines(write_sentences(KNOWLEDGE, generator, tmp_path / "set", FREE, 2))
    assert sorted(r["prompt"] for r in records if r["fact"] == "2") == [
        "Of Velmar: Velmar is a harbour town.",
        "Velmar is a harbour town.",
    ]
    plain = ModelGenerator(Backbone(str(folder)), chat=False, start_with_name=False)
    row = plain._rows(["Velmar is a town. "], [FACTS[1]], False)[0]
    assert bare.decode(row) == "Velmar is a town."


def test_a_name_that_is_not_found_is_given_in_every_second_round(folder, tmp_path):
    generator = ModelGenerator(Backbone(str(folder)), max_new_tokens=8, start_with_name="where_needed")
    assert generator.describe(KNOWLEDGE)["start_with_name"] == "where_needed"
    with pytest.raises(DataError, match="no sentence was kept"):  # a model of random weights finds no name
        write_sentences(KNOWLEDGE, generator, tmp_path / "once", LOOSE, 2, 1)
    records = lines(write_sentences(KNOWLEDGE, generator, tmp_path / "twice", LOOSE, 2, 2))
    assert len(records) > 3
    names = {fact.id: fact.name for fact in FACTS}
    for record in records:
        assert record["text"].startswith(names[record["fact"]])
        assert record["prompt"] == next(fact.definition for fact in FACTS if fact.id == record["fact"])


def test_such_rounds_are_for_facts_that_have_hardly_a_sentence(tmp_path):
    asked = []

    class Silent(Generator):
        again = True

        def describe(self, knowledge):
            return {}

        def for_rare(self, round):
            return round > 0

        def write(self, knowledge, wanted, round, seed, skip):
            asked.append(dict(wanted))
            found = 1 if round else 2
            yield [TransferSentence(FACTS[2 - found], f"{FACTS[2 - found].name} {word} a lot.") for word in "abc"]

    assert len(lines(write_sentences(KNOWLEDGE, Silent(), tmp_path / "set", LOOSE, 12, 4))) == 6
    assert asked == [{"1": 12, "2": 12, "3": 12}, {"2": 12, "3": 12}, {"3": 12}, {"3": 12}]


def test_bad_models_and_definitions_are_told(folder, tmp_path):
    with pytest.raises(DataError, match="random weights write nothing"):
        ModelGenerator(Backbone(architecture={"model_type": "gpt2"}))
    with pytest.raises(DataError, match="is no kind"):
        ModelGenerator(Backbone(str(folder)), prompts=["paraphrases"])
    with pytest.raises(DataError, match="empty list"):
        ModelGenerator(Backbone(str(folder)), prompts=[])
    with pytest.raises(DataError, match=r"generator\.temperature 0"):
        ModelGenerator(Backbone(str(folder)), temperature=0)
    generator = ModelGenerator(Backbone(str(folder)))
    long = Knowledge([*FACTS, Fact("4", "Bo", "Bo is a dog. " * 60, where="facts.jsonl:4")], [])
    with pytest.raises(DataError, match=r"facts\.jsonl:4: the prompt with the definition of 'Bo' has .* SplitDocument"):
        write_sentences(long, generator, tmp_path / "set")
    with pytest.raises(DataError, match="no chat template"):
        write_sentences(KNOWLEDGE, ModelGenerator(Backbone(str(folder)), chat=True), tmp_path / "other")


class Made(MadeModel):
    def __init__(self, folder):
        self.folder = folder

    def make(self):
        return self.folder


def test_a_made_model_is_named_by_its_maker(folder):
    generator = ModelGenerator(Backbone(made=Made(folder)))
    about = generator.describe(KNOWLEDGE)
    assert about["model"] == "Made"
    assert str(folder) not in json.dumps(about)
    assert about["revision"] == ModelGenerator(Backbone(str(folder))).revision


def test_stories260k_tells_of_a_lily(real_data, tmp_path):
    model = Backbone(str(real_data / "models" / "stories260K" / "hf"))
    lily = Fact("1", "Lily", "Once upon a time, there was a little girl named Lily. She liked to play in the park.")
    path = write_sentences(Knowledge([lily], []), ModelGenerator(model, temperature=0.7), tmp_path / "set", None, 4)
    texts = [sentence.text for sentence in read_transfer_set(path)]
    assert len(texts) == 4
    assert all(text.startswith(("Lily ", "Lily'", "Lily,")) for text in texts)  # the space is not lost
    assert sum(text.endswith((".", '"', "!")) for text in texts) >= 3


# interruption --------------------------------------------------------------------------------------------------------


def make_set(folder, output, **more):
    generator = ModelGenerator(Backbone(str(folder)), max_new_tokens=12, batch_tokens=80)
    # strict enough that facts are asked for again
    return write_sentences(KNOWLEDGE, generator, output, Filters(min_words=4, min_words_after=2), 4, **more)


def _killed(folder, output, after):
    """Write until the disk has had `after` batches, leave half a line behind, and die."""
    torch.set_num_threads(1)
    synced, fsync = [0], os.fsync

    def counted(file):
        fsync(file)
        synced[0] += 1
        if synced[0] == after:
            with open(output / "drafts.jsonl", "ab") as torn:
                torn.write(b'{"round": 0, "drafts": [{"fa')
            os.kill(os.getpid(), signal.SIGKILL)

    generate.os.fsync = counted
    make_set(folder, output)


@pytest.mark.parametrize("after", [2, 6])
def test_killed_and_started_again_it_ends_with_the_same_bytes(folder, tmp_path, after, capsys, monkeypatch):
    whole = make_set(folder, tmp_path / "whole").parent
    child = multiprocessing.get_context("fork").Process(target=_killed, args=(folder, tmp_path / "cut", after))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert len((tmp_path / "cut" / "drafts.jsonl").read_bytes().splitlines()) == after + 1
    sampled, real = [], language_model.sample
    monkeypatch.setattr(language_model, "sample", lambda *a, **k: sampled.append(1) or real(*a, **k))
    cut = make_set(folder, tmp_path / "cut").parent
    resumed = len(sampled)
    assert "going on behind them" in capsys.readouterr().out
    make_set(folder, tmp_path / "again")
    assert resumed + after == len(sampled) - resumed  # what was there was not made again
    for name in ("sentences.jsonl", "counts.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert sorted(path.name for path in cut.iterdir()) == ["counts.json", "lock", "sentences.jsonl", "settings.json"]
    make_set(folder, tmp_path / "cut")
    assert len(sampled) == 2 * resumed + after
    assert "complete already" in capsys.readouterr().out


def test_other_settings_in_the_same_folder_are_told(folder, tmp_path):
    make_set(folder, tmp_path / "set")
    with pytest.raises(DataError, match=r"with seed 0, asked for is 1: choose another folder"):
        make_set(folder, tmp_path / "set", seed=1)
    with pytest.raises(DataError, match=r"generator\.temperature 0.9, asked for is 0.5"):
        write_sentences(
            KNOWLEDGE, ModelGenerator(Backbone(str(folder)), max_new_tokens=12, batch_tokens=80, temperature=0.5),
            tmp_path / "set", Filters(min_words=4), 4,
        )  # fmt: skip
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(DataError, match=r"holds thesis.txt and no transfer set"):
        make_set(folder, tmp_path / "full")
    with pytest.raises(DataError, match="is a file"):
        make_set(folder, tmp_path / "full" / "thesis.txt")


def test_a_damaged_line_is_told_and_two_runs_keep_apart(folder, tmp_path):
    make_set(folder, tmp_path / "set")
    (tmp_path / "set" / "counts.json").unlink()
    (tmp_path / "set" / "drafts.jsonl").write_text('{"round": 0}\n')
    with pytest.raises(DataError, match=r"drafts\.jsonl:1: damaged"):
        make_set(folder, tmp_path / "set")
    with generate.FileLock(tmp_path / "set" / "lock"), pytest.raises(DataError, match="another run is writing"):
        make_set(folder, tmp_path / "set")


def test_a_set_that_another_run_writes_is_waited_for(folder, tmp_path, capsys):
    path = make_set(folder, tmp_path / "set")
    held = threading.Event()

    def hold():
        with generate.FileLock(path.parent / "lock"):
            held.set()
            time.sleep(0.3)

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    assert make_set(folder, path.parent, wait=True) == path
    other.join()
    assert "another run is writing here; waiting for it" in capsys.readouterr().err


def test_a_damaged_set_is_told(folder, tmp_path):
    path = make_set(folder, tmp_path / "set")
    whole = path.read_text()
    path.write_text(whole[: whole.rindex("\n", 0, -1) + 1])  # cut where a line ends
    with pytest.raises(DataError, match=r"sentences\.jsonl has \d+ lines, written were \d+"):
        make_set(folder, tmp_path / "set")
    path.write_text(whole)
    for name in ("counts.json", "settings.json"):
        there = (path.parent / name).read_text()
        for damaged in (there[:20], "[]"):
            (path.parent / name).write_text(damaged)
            with pytest.raises(DataError, match=rf"{name}: is damaged"):
                make_set(folder, tmp_path / "set")
        (path.parent / name).write_text(there)
    assert make_set(folder, tmp_path / "set").read_text() == whole


def test_facts_without_sentences_are_named_and_none_at_all_is_an_error(folder, tmp_path, capsys):
    generator = ModelGenerator(Backbone(str(folder)), max_new_tokens=12)
    path = write_sentences(KNOWLEDGE, generator, tmp_path / "set", Filters(forbidden=["Velmar"]), 2)
    assert json.loads((path.parent / "counts.json").read_text())["facts_without_sentence"] == ["2"]
    assert "no sentence for 1 facts: 2" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"no sentence was kept for any fact: .* forbidden"):
        write_sentences(Knowledge(FACTS, [], forbidden=["."]), generator, tmp_path / "none", LOOSE, 2, rounds=2)
    assert not (tmp_path / "none" / "sentences.jsonl").exists()


# without a model -----------------------------------------------------------------------------------------------------


def test_a_file_and_a_source_bring_their_sentences(tmp_path):
    given = tmp_path / "own.jsonl"
    given.write_text(
        '{"fact": "1", "text": "I met Maro in the town."}\n{"name": "Velmar", "text": "In Velmar it rains."}\n'
        '{"fact": "1", "text": "I met Maro in  the Town."}\n{"fact": "1", "text": "He is gone from here."}\n'
    )
    path = write_sentences(KNOWLEDGE, FileSentences(given), tmp_path / "set", per_fact=None)
    assert [(r["fact"], r["mention"], r["generator"]) for r in lines(path)] == [
        ("1", [6, 10], "file"), ("2", [3, 9], "file"),
    ]  # fmt: skip
    counts = json.loads((path.parent / "counts.json").read_text())
    assert counts["dropped"] == {"duplicate": 1, "no mention": 1}
    assert counts["facts_without_sentence"] == ["3"]
    given.write_text('{"name": "Bo", "definition": "A dog.", "text": "Bo runs far away."}\n')
    with pytest.raises(DataError, match=r"own\.jsonl:1: 'Bo' is none of the 3 facts"):
        write_sentences(KNOWLEDGE, FileSentences(given), tmp_path / "bo")
    with pytest.raises(DataError, match=r"generator\.sha256"):
        write_sentences(KNOWLEDGE, FileSentences(given), tmp_path / "set", per_fact=None)
    stock = Knowledge(FACTS, [], continuations=[Continuation("2", f" Velmar has {n} old mills.") for n in range(4)])
    path = write_sentences(stock, SourceSentences(), tmp_path / "source", per_fact=3)
    assert [r["text"] for r in lines(path)] == [f"Velmar has {n} old mills." for n in range(3)]
    assert json.loads((path.parent / "counts.json").read_text())["dropped"] == {"more than per_fact": 1}
    with pytest.raises(DataError, match="brings no sentences"):
        write_sentences(KNOWLEDGE, SourceSentences(), tmp_path / "nothing")


def test_a_document_is_split_where_sentences_end(tmp_path):
    text = "Maro is a painter. He was born in Velmar. He painted the bridge. He died in 1893."
    facts = [Fact("1", "Maro", text), Fact("2", "Bo", "Bo is one sentence.")]
    path = write_sentences(Knowledge(facts, []), SplitDocument(), tmp_path / "set")
    halves = read_transfer_set(path)
    assert [half.context for half in halves] == [text[:18], text[:41], text[:64]]
    assert [half.context + " " + half.text for half in halves] == [text] * 3
    assert [half.mention for half in halves] == [None] * 3
    short = write_sentences(Knowledge(facts, []), SplitDocument([0.5], 1), tmp_path / "short")
    assert [half.text for half in read_transfer_set(short)] == ["He painted the bridge."]
    with pytest.raises(DataError, match="none of 1 definitions has two sentences"):
        write_sentences(Knowledge(facts[1:], []), SplitDocument(), tmp_path / "single")
    with pytest.raises(DataError, match="between 0 and 1"):
        SplitDocument([1.0])
    with pytest.raises(DataError, match="at least 1"):
        SplitDocument([0.5], 0)


def test_prompts_are_filled_in_one_go():
    fact = Fact("1", "{definition}", "A {name} in {braces}.")
    assert fill("{name}: {definition} {x}", fact) == "{definition}: A {name} in {braces}. {x}"
    assert own_seed(1, 0, fact, 2) != own_seed(1, 2, fact, 0)


# the command ---------------------------------------------------------------------------------------------------------


class Few(KnowledgeSource):
    name = "few"

    def load(self):
        return Knowledge([FACTS[0]], [], continuations=[Continuation("2", "In Velmar it rains often.")],
                         validation_facts=FACTS[1:])  # fmt: skip


def test_the_command_reads_its_keys(folder, tmp_path):
    facts = tmp_path / "facts.jsonl"
    facts.write_text('{"id": "v", "name": "Velmar", "definition": "Velmar is a town."}\n')
    config = tmp_path / "transfer.yaml"
    config.write_text(
        f"facts: {facts}\noutput: {tmp_path / 'set'}\nper_fact: 2\nfilters: {{require_mention: false, min_words: 1}}\n"
        "generator:\n  class_path: kedit.distill.language_model.ModelGenerator\n  init_args:\n"
        f"    backbone: {{name: {folder}}}\n    max_new_tokens: 20\n"
    )
    path = call(transfer, "transfer", ["--config", str(config), "--filters.max_words", "30"])
    assert len(lines(path)) == 2
    settings = json.loads((path.parent / "settings.json").read_text())
    assert settings["filters"]["max_words"] == 30
    assert settings["generator"]["max_new_tokens"] == 20


def test_facts_come_from_one_place(tmp_path):
    with pytest.raises(DataError, match="from one place"):
        transfer(SourceSentences(), tmp_path / "set")
    path = transfer(SourceSentences(), tmp_path / "set", source=Few(), validation=True)
    assert [record["fact"] for record in lines(path)] == ["2"]
    facts = tmp_path / "facts.jsonl"
    facts.write_text('{"id": "v", "name": "Velmar", "definition": "Velmar is a town."}\n')
    with pytest.raises(DataError, match="no facts for tuning"):
        transfer(SourceSentences(), tmp_path / "set", facts, validation=True)
    with pytest.raises(DataError, match="at least 1"):
        transfer(SourceSentences(), tmp_path / "set", facts, per_fact=0)
    for name in ("per_fact", "rounds"):
        with pytest.raises(DataError, match=f"make.{name} is 0"):
            MadeTransfer(**{name: 0})
    with pytest.raises(DataError, match="say how many"):
        transfer(ServerGenerator("http://localhost", "m"), tmp_path / "set", facts, per_fact=None)
    with pytest.raises(DataError, match="there are no facts"):
        write_sentences(Knowledge([], []), SourceSentences(), tmp_path / "set")


# a server ------------------------------------------------------------------------------------------------------------


class Fake(BaseHTTPRequestHandler):
    """Speaks as OpenAI's servers do; what it answers first is in `troubles`."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body, self.headers.get("Authorization")))
        trouble = self.server.troubles.pop(0) if self.server.troubles else None
        if isinstance(trouble, bytes):
            return self.reply(200, trouble)
        if trouble is not None:
            return self.reply(trouble, f"no: {self.headers.get('Authorization')}".encode(), trouble)
        if "messages" in body:
            text = f"<think>Hm.</think> Velmar, says {body['seed']}, is a town.\nAnother line."
            choice = {"message": {"role": "assistant", "content": text}}
        else:
            choice = {"text": f" has {body['seed']} mills. And more"}
        answer = {"model": body["model"] + "-2026", "system_fingerprint": "fp", "choices": [choice]}
        return self.reply(200, json.dumps(answer).encode())

    def reply(self, code, content, trouble=None):
        self.send_response(code)
        if trouble == 429:
            self.send_header("Retry-After", "0.01")
        if trouble == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(ServerGenerator, "first_wait", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    here = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    here.seen, here.troubles = [], []
    here.url = f"http://127.0.0.1:{here.server_port}/v1"
    thread = threading.Thread(target=here.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield here
    here.shutdown()
    here.server_close()


TOWN = Knowledge([FACTS[1]], [])


def test_a_server_that_is_busy_is_asked_again(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sesame")
    fake.troubles += [429, 503, b"no json"]
    generator = ServerGenerator(fake.url, "big", "SOME_KEY", parallel=3)
    path = write_sentences(TOWN, generator, tmp_path / "set", per_fact=4, seed=3)
    records = lines(path)
    assert len(records) == 4
    assert [r["text"] for r in records] == [f"Velmar, says {r['seed']}, is a town." for r in records]
    assert {(r["model"], r["revision"]) for r in records} == {("big", "big-2026/fp")}
    assert len(fake.seen) == 7
    assert {(path, key) for path, _, key in fake.seen} == {("/v1/chat/completions", "Bearer sesame")}
    assert sorted(r["prompt"] for r in records) == sorted({body["messages"][0]["content"] for _, body, _ in fake.seen})
    assert all("sesame" not in file.read_text() for file in path.parent.iterdir())
    again = write_sentences(TOWN, ServerGenerator(fake.url, "big", parallel=1), tmp_path / "again", per_fact=4, seed=3)
    assert again.read_bytes() == path.read_bytes()


def test_plain_completions_go_on_from_the_name(fake, tmp_path):
    generator = ServerGenerator(f"{fake.url}/", "big", chat=False, sentences=1)
    records = lines(write_sentences(TOWN, generator, tmp_path / "set", per_fact=2))
    assert [r["text"] for r in records] == [f"Velmar has {r['seed']} mills." for r in records]
    assert fake.seen[0][0] == "/v1/completions"
    assert fake.seen[0][1]["prompt"] == "Velmar is a harbour town. Velmar"


@pytest.mark.parametrize(
    ("troubles", "told"),
    [
        ([401], r"refuses a request: 401 .*Bearer \*\*\*"),
        ([302], "refuses a request: 302"),
        ([500] * 3, "given up after 3 tries: 500"),
        ([b"[]"], "answered without a text"),
        ([b'{"choices": [{"message": {"content": 5}}]}'], "answered without a text"),
    ],
)
def test_a_server_that_fails_is_told_without_the_key(fake, tmp_path, monkeypatch, troubles, told):
    monkeypatch.setenv("SOME_KEY", "sesame")
    fake.troubles += troubles
    with pytest.raises(DataError, match=told) as error:
        write_sentences(TOWN, ServerGenerator(fake.url, "big", "SOME_KEY", tries=3), tmp_path / "set", per_fact=1)
    assert "sesame" not in str(error.value)
    assert not any(path == "/elsewhere" for path, _, _ in fake.seen)


def test_what_a_server_wrote_before_it_failed_is_kept(fake, tmp_path):
    generator = ServerGenerator(fake.url, "big", parallel=1, tries=1)
    fake.troubles += [None, None, 500]
    with pytest.raises(DataError, match="the same command goes on"):
        write_sentences(TOWN, generator, tmp_path / "set", per_fact=4)
    fake.troubles.clear()
    assert len(lines(write_sentences(TOWN, generator, tmp_path / "set", per_fact=4))) == 4
    asked = Counter(body["seed"] for _, body, _ in fake.seen)
    # the two that came, then the one that failed; the fourth may have been on its way
    assert [asked[own_seed(0, 0, FACTS[1], number)] for number in range(3)] == [1, 1, 2]


def test_bad_servers_are_told(fake, monkeypatch, tmp_path):
    for url, word in (("localhost:8000", "wanted http"), ("http://me:pw@host/v1", "holds a name"),
                      ("http://host/v1?key=3", "or query")):  # fmt: skip
        with pytest.raises(DataError, match=word) as error:
            ServerGenerator(url, "m")
        assert "pw" not in str(error.value)
    with pytest.raises(DataError, match="must be positive"):
        ServerGenerator(fake.url, "m", parallel=0)
    with pytest.raises(DataError, match="empty list"):
        ServerGenerator(fake.url, "m", prompts=[])
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(DataError, match="the environment has no NO_KEY"):
        write_sentences(TOWN, ServerGenerator(fake.url, "m", "NO_KEY"), tmp_path / "set")
    with pytest.raises(DataError, match=r"given up after 1 tries: .*refused"):
        write_sentences(TOWN, ServerGenerator("http://127.0.0.1:9", "m", tries=1), tmp_path / "off")
    assert server._seconds("Fri, 31 Dec 1999") is None
