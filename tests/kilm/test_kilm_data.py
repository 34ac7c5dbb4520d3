import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import kilm_data

from kedit.editing.sources import DataError, Question, QuestionSource
from kedit.kilm import KilmData
from kedit.kilm.batch import Composer
from kedit.kilm.data import Evaluation, read_mentions
from kedit.kilm.infilling import INFILLED, KNOWLEDGE, Infilling


def same(one, two):
    return all(
        torch.equal(getattr(one, name), getattr(two, name)) for name in ("targets_N", "classes_N", "where_N")
    ) and all(
        torch.equal(a, b)
        for a, b in zip(vars(one.rows).values(), vars(two.rows).values(), strict=True)
        if a is not None
    )


def trainer(rank, world, accumulated):
    return SimpleNamespace(
        global_rank=rank, world_size=world, accumulate_grad_batches=accumulated, limit_train_batches=1.0
    )


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_a_batch_is_a_function_of_seed_epoch_and_number(world_corpus, family):
    one, two = kilm_data(world_corpus[family]), kilm_data(world_corpus[family])
    two.make_batch(3, 1)
    assert same(one.make_batch(1, 2), two.make_batch(1, 2))
    assert not same(one.make_batch(1, 2), one.make_batch(2, 2))
    assert one.batches_per_epoch == two.batches_per_epoch > 3


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_every_training_document_once_an_epoch_and_none_held_out(world_corpus, family):
    data = kilm_data(world_corpus[family])
    for epoch in (0, 1):
        seen = Counter(
            unit for batch in range(data.batches_per_epoch) for unit in data.make_batch(epoch, batch).documents
        )
        assert set(seen) == set(data.train_units.tolist())
        assert set(seen.values()) == {1}
    assert not set(data.train_units) & set(data.validation_units)
    assert not set(data.train_units) & set(data.test_units)
    assert not set(data.validation_units) & set(data.test_units)
    assert len(data.validation_units) == len(data.test_units) == 60


def test_a_run_is_resumed_on_what_it_was_trained_on(world_corpus):
    data = kilm_data(world_corpus["bart"])
    saved = data.state_dict()
    kilm_data(world_corpus["bart"], num_workers=1).load_state_dict(saved)
    for changed, named in (
        ({"infilling": Infilling(0.2)}, "data.infilling"),
        ({"evaluation": Evaluation(held_out=61)}, r"held_out \(60, here 61\)"),
        ({"packing": False}, "data.packing"),
    ):
        with pytest.raises(DataError, match=named):
            kilm_data(world_corpus["bart"], **changed).load_state_dict(saved)
    other = kilm_data(world_corpus["bart"])
    other.corpus._tokens = other.corpus._tokens[::-1]
    with pytest.raises(DataError, match=r"here: which documents are in which rows \("):
        other.load_state_dict(saved)


@pytest.mark.parametrize(("world", "accumulated"), [(2, 1), (4, 1), (8, 1), (3, 2), (2, 4)])
@pytest.mark.parametrize("size", [{"batch_rows": 9}, {"batch_rows": None, "batch_tokens": 2048}])
def test_processes_and_accumulated_batches_share_each_step(world_corpus, size, world, accumulated):
    whole = kilm_data(world_corpus["bart"], **size)
    data = kilm_data(world_corpus["bart"], **size)
    steps = [whole.steps_per_epoch - 1, 0, 1]  # the last is a partial one
    for step in steps:
        parts, weight = [], 0.0
        for batch in range(step * accumulated, (step + 1) * accumulated):
            for rank in range(world):
                data.trainer = trainer(rank, world, accumulated)
                assert data.batches_per_epoch == whole.steps_per_epoch * accumulated
                parts.append(data.make_batch(1, batch))
                weight += parts[-1].weight / world
        assert sorted(unit for part in parts for unit in part.documents) == sorted(whole.make_batch(1, step).documents)
        assert all(len(part.classes_N) for part in parts)
        assert weight == pytest.approx(accumulated)


def test_batch_size_in_target_tokens(world_corpus):
    data = kilm_data(world_corpus["bart"], batch_rows=None, batch_tokens=2048)
    data.trainer = trainer(0, 2, 2)
    assert 15 <= data.step_samples <= 18
    t5 = kilm_data(world_corpus["t5"], batch_rows=None, batch_tokens=512)
    tokens = np.mean([t5.make_batch(0, number).target_tokens for number in range(t5.batches_per_epoch - 1)])
    assert 350 < tokens < 680


def test_rows_are_not_longer_than_asked_and_nearly_full(world_corpus):
    for family in ("bart", "t5"):
        data = kilm_data(world_corpus[family], row_tokens=256)
        batches = [data.make_batch(0, number) for number in range(data.batches_per_epoch - 1)]
        side = "decoder_BT" if family == "bart" else "source_BS"
        # how many spans are hidden is drawn, so T5's source is estimated
        assert max(getattr(batch.rows, side).shape[1] for batch in batches) <= (256 if family == "bart" else 264)
        padding = sum(batch.padding for batch in batches) / sum(batch.positions for batch in batches)
        assert padding < 0.12
        alone = kilm_data(world_corpus[family], row_tokens=256, packing=False, batch_rows=8)
        unpacked = [alone.make_batch(0, number) for number in range(alone.batches_per_epoch)]
        assert sum(b.padding for b in unpacked) / sum(b.positions for b in unpacked) > 2 * padding


def test_batches_hold_rows_of_like_shape_in_shuffled_order(world_corpus):
    data = kilm_data(world_corpus["bart"], batch_rows=2)
    rows = data.epoch_rows(0)
    assert sorted(rows.tolist()) == list(range(len(data.train.rows)))
    assert not np.array_equal(rows, data.epoch_rows(1))
    other = data.train.other_side
    whole = rows[: len(rows) // 2 * 2].reshape(-1, 2)
    apart = np.abs(np.diff(other[whole], axis=1)).mean()
    assert (
        apart < 0.5 * np.abs(np.diff(np.random.default_rng(0).permutation(other)[: whole.size].reshape(-1, 2))).mean()
    )
    # batches themselves come in no order of size
    assert abs(np.corrcoef(np.arange(len(whole)), other[whole].mean(1))[0, 1]) < 0.5
    # as the estimate says, so it is
    batch = data.train.batch(range(len(data.train.rows)), epoch=0)
    width = [int((row >= 0).sum()) for row in batch.rows.source_document_BS]
    assert np.corrcoef(width, other)[0, 1] > 0.3


def test_every_document_with_a_known_mention_gets_a_description(world_corpus):
    data = kilm_data(world_corpus["bart"], infilling=Infilling(mentions=1, described_share=1.0))
    composer, corpus = data.train, data.corpus
    for row in range(len(composer.rows)):
        for unit, example in zip(composer.rows[row].tolist(), composer.examples(row, 0), strict=True):
            described = (example.target == data.marks.ent_desc).sum()
            assert described == (1 if len(corpus.mentions(unit)) else 0)


def test_a_share_of_the_documents_stays_plain(world_corpus):
    data = kilm_data(world_corpus["bart"], infilling=Infilling(described_share=0.5))
    examples = [e for row in range(len(data.train.rows)) for e in data.train.examples(row, 0)]
    assert 0.3 < np.mean([(example.target == data.marks.ent_desc).any() for example in examples]) < 0.6


def test_the_reference_setting_and_plain_infilling(world_corpus):
    reference = kilm_data(world_corpus["bart"], infilling=Infilling(reference=True), packing=False, batch_rows=8)
    batch = reference.make_batch(0, 0)
    share = (batch.classes_N == INFILLED).sum() / (batch.classes_N != KNOWLEDGE).sum()
    assert 0.1 < share < 0.3
    plain = kilm_data(world_corpus["bart"], infilling=Infilling(knowledge=False)).make_batch(0, 0)
    assert not (plain.classes_N == KNOWLEDGE).any()


def test_documents_and_descriptions_that_do_not_fit_are_counted(world_corpus):
    data = kilm_data(world_corpus["bart"])
    composer = Composer(data.corpus, data.train_units, data.marks, Infilling(), row_tokens=40, seed=0)
    longer = (data.corpus.lengths[data.train_units] + 2 > 40).sum()
    assert composer.skipped["documents longer than a row"] == longer > 0
    assert composer.skipped["mentions whose description is longer than the row"] > 0
    assert max(e.target.size for row in range(len(composer.rows)) for e in composer.examples(row, 0)) <= 40
    with pytest.raises(DataError, match="row of 3 tokens"):
        Composer(data.corpus, data.train_units, data.marks, Infilling(), row_tokens=3, seed=0)


def test_held_out_mentions_are_of_entities_seen_in_training(world_corpus):
    data = kilm_data(world_corpus["bart"], evaluation=Evaluation(held_out=60, test_mentions=40))
    rows, seen, unseen, ambiguous = data.test_dataloader()
    assert len(rows) > 0
    questions = {loader.task: [m.question for m in loader.items] for loader in (seen, unseen, ambiguous)}
    for task, asked in questions.items():
        assert len(asked) >= 10, task
        for question in asked:
            assert question.gold
            assert question.description
            assert question.mention in question.text
    for question in questions["disambiguation"]:
        assert len(question.candidates) > 1
        assert question.gold in [candidate.title for candidate in question.candidates]
    trained = {
        data.corpus.title(e) for u in data.train_units.tolist() for e in np.asarray(data.corpus.mentions(u))[:, 2]
    }
    assert {question.gold for question in questions["unseen"]} <= trained
    # the right answer is not always first
    first = [q.candidates[0].title == q.gold for q in questions["disambiguation"]]
    assert 0 < sum(first) < len(first)


def test_evaluation_is_dealt_out_to_processes(world_corpus):
    data = kilm_data(world_corpus["bart"])
    whole = data.test_dataloader()[2].items
    parts = []
    for rank in range(2):
        data.trainer = trainer(rank, 2, 1)
        parts.append(data.test_dataloader()[2].items)
    assert [m.question.text for m in whole[::2]] == [m.question.text for m in parts[0]]
    assert len(parts[0]) + len(parts[1]) == len(whole)


class Capitals(QuestionSource):
    name = "capitals"

    def __iter__(self):
        yield Question("what is the capital of Velmar?", ["Drel"])


def test_benchmarks_join_the_test(world_corpus):
    data = kilm_data(world_corpus["bart"], evaluation=Evaluation(held_out=60, benchmarks=[Capitals()]))
    batch = next(iter(data.test_dataloader()[-1]))
    assert batch.task == "capitals"
    assert batch.questions[0].answers == ["Drel"]


def test_predict_reads_jsonl_and_names_bad_lines(tmp_path, world_corpus):
    file = tmp_path / "mentions.jsonl"
    good = {"text": "Maro painted it.", "mention": "Maro", "candidates": [{"title": "Maro (painter)"}]}
    span = {"text": "Maro painted it.", "span": [5, 12]}
    file.write_text("\n".join(map(json.dumps, [good, span])))
    one, two = read_mentions(file)
    assert one.span == (0, 4)
    assert one.candidates[0].title == "Maro (painter)"
    assert two.mention == "painted"
    data = kilm_data(world_corpus["bart"], predict=str(file))
    assert len(data.predict_dataloader().items) == 2
    for bad, message in [
        ({"text": "Maro"}, "no 'mention'"),
        ({"text": "Maro", "mention": "Dino"}, "'Dino' does not stand"),
        ({"text": "Maro", "span": [0]}, "two character offsets"),
        ({"text": "Maro", "mention": "Maro", "candidates": [{}]}, "no 'title'"),
    ]:
        file.write_text(json.dumps(good) + "\n" + json.dumps(bad))
        with pytest.raises(DataError, match=message) as error:
            list(read_mentions(file))
        assert f"{file}:2" in str(error.value)
    with pytest.raises(DataError, match=r"--data\.predict"):
        kilm_data(world_corpus["bart"]).predict_dataloader()


def test_settings_that_contradict_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"either data\.corpus"):
        KilmData(batch_rows=1)
    with pytest.raises(ValueError, match=r"either data\.batch_rows"):
        KilmData(corpus="x")
    data = KilmData(corpus=str(tmp_path / "nowhere"), batch_rows=1)
    with pytest.raises(DataError, match="nowhere"):
        data.setup("fit")


def test_a_made_corpus_is_made_once(world_corpus):
    folder = Path(world_corpus["bart"])
    before = (folder / "manifest.json").stat().st_mtime_ns
    from kedit.kilm.data import MadeCorpus
    from kedit.world import WorldWiki

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEDIT_CACHE", str(folder.parents[2]))
        assert MadeCorpus(WorldWiki(200, 0, 3), vocabulary=1024, chunk_tokens=48).make() == folder
        assert MadeCorpus(WorldWiki(200, 1, 3), vocabulary=1024, chunk_tokens=48).folder() != folder.parent
    assert (folder / "manifest.json").stat().st_mtime_ns == before
