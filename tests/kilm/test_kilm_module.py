import json

import pytest
import torch
from conftest import ARCHITECTURES, kilm_data
from lightning.pytorch import Trainer, seed_everything

from kedit.editing.sources import DataError, MentionQuestion, MentionSource, Question, QuestionSource
from kedit.kilm import KilmModule
from kedit.kilm.data import Evaluation
from kedit.kilm.infilling import Infilling
from kedit.kilm.loss import ClassWeights
from kedit.lm.backbones import Backbone, load_seq2seq, save_skeleton
from kedit.lm.optim import Schedule
from kedit.running.position import TrainingPosition


class Towns(MentionSource):
    name = "towns"

    def __iter__(self):
        yield MentionQuestion("Velmar is a town.", (0, 6), gold="Velmar")


class Capitals(QuestionSource):
    name = "capitals"

    def __iter__(self):
        yield Question("what is the capital?", ["Drel"])


def trainer(tmp_path, **options):
    options = {"max_steps": 30, "check_val_every_n_epoch": None, "val_check_interval": 30} | options
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, num_sanity_val_steps=0, use_distributed_sampler=False,
        default_root_dir=tmp_path, callbacks=[TrainingPosition()], **options,
    )  # fmt: skip


def module(name, **options):
    architecture = dict(ARCHITECTURES[name])
    options = {"optimizer": lambda p: torch.optim.AdamW(p, lr=3e-3), "schedule": Schedule(warmup=0.1)} | options
    return KilmModule(Backbone(architecture=architecture), **options)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_fit_test_and_predict(tmp_path, world_corpus, name):
    seed_everything(0)
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"text": "Velmar is a town.", "mention": "Velmar", "candidates": [{"title": "V"}]}))
    evaluation = Evaluation(
        held_out=60, validation_mentions=6, panel=2, test_mentions=8, benchmarks=[Towns(), Capitals()], batch=4
    )
    data = kilm_data(world_corpus[name], evaluation=evaluation, predict=str(asked))
    kilm = module(name)
    runner = trainer(tmp_path)
    runner.fit(kilm, data)
    validated = {key: value.item() for key, value in runner.callback_metrics.items()}
    assert validated["val/loss"] < 6.8  # ln(1024) is 6.93
    assert {"val/loss/knowledge", "val/loss/infilled", "val/description_f1"} <= set(validated)
    assert not kilm.scores

    results = {key: value for part in runner.test(kilm, data, verbose=False) for key, value in part.items()}
    keys = {f"test/description_{m}/{s}" for m in ("exact_match", "f1", "rouge_l") for s in ("seen", "unseen")}
    keys |= {"test/disambiguation_accuracy", "test/disambiguation_f1", "test/infilling_loss"}
    keys |= {"test/towns/accuracy", "test/towns/f1", "test/capitals/exact_match", "test/capitals/f1"}
    assert keys <= set(results)
    assert 0 < results["test/infilling_loss"] < 8

    ((answer,),) = runner.predict(kilm, data)
    assert answer["mention"] == "Velmar"
    assert answer["choice"] == "V"
    assert isinstance(answer["description"], str)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_losses_and_gradients_of_packed_rows_equal_those_of_single_documents(tmp_path, world_corpus, name):
    data = kilm_data(world_corpus[name], row_tokens=192, batch_rows=2)
    kilm = module(name)
    kilm.model = load_seq2seq(kilm.backbone, data.tokenizer).eval()
    packed = data.make_batch(0, 0)
    examples = [example for row in data._order[1][:2] for example in data.train.examples(int(row), 0)]
    from kedit.kilm.batch import collate

    alone = collate([[example] for example in examples], data.marks)
    assert len(examples) > 4
    results = []
    for batch in (packed, alone):
        kilm.zero_grad()
        loss, sums, counts = kilm._loss(batch)
        loss.backward()
        gradients = {key: p.grad.clone() for key, p in kilm.named_parameters() if p.grad is not None}
        results.append((loss.item(), sums, counts, gradients))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-5)
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-4)
    assert torch.equal(results[0][2], results[1][2])
    for key, gradient in results[0][3].items():
        assert torch.allclose(gradient, results[1][3][key], atol=1e-5), key


def test_a_pretrained_backbone_by_name(tmp_path, world_corpus):
    data = kilm_data(world_corpus["bart"])
    plain = data.corpus.tokenizer()
    model = load_seq2seq(Backbone(architecture=ARCHITECTURES["bart"]), plain)
    model.save_pretrained(tmp_path / "bart")
    save_skeleton(model, plain, tmp_path / "bart")
    kilm = KilmModule(
        Backbone(name=str(tmp_path / "bart"), vocabulary_multiple=64), class_weights=ClassWeights(copied=0)
    )
    runner = trainer(tmp_path, max_steps=2, val_check_interval=None)
    runner.fit(kilm, data)
    assert kilm.model.config.vocab_size % 64 == 0
    assert kilm.model.config.vocab_size >= len(kilm.tokenizer)


def test_a_model_that_does_not_fit_the_corpus_is_refused(tmp_path, world_corpus):
    with pytest.raises(DataError, match="written for a bart tokenizer"):
        trainer(tmp_path).fit(module("t5"), kilm_data(world_corpus["bart"]))
    with pytest.raises(DataError, match="row_tokens is 300, but the model has 256 positions"):
        trainer(tmp_path).fit(module("bart"), kilm_data(world_corpus["bart"], row_tokens=300))
    tokenizer = kilm_data(world_corpus["t5"]).corpus.tokenizer()
    other = load_seq2seq(Backbone(architecture=ARCHITECTURES["t5"]), tokenizer)
    other.save_pretrained(tmp_path / "t5")
    save_skeleton(other, tokenizer, tmp_path / "t5")
    with pytest.raises(DataError, match="tokenizer"):
        trainer(tmp_path).fit(KilmModule(Backbone(name=str(tmp_path / "t5"))), kilm_data(world_corpus["bart"]))


def test_without_knowledge_nothing_is_asked_of_it(tmp_path, world_corpus):
    data = kilm_data(world_corpus["bart"], infilling=Infilling(knowledge=False))
    runner = trainer(tmp_path, max_steps=2, val_check_interval=2)
    runner.fit(module("bart"), data)
    assert "val/loss/infilled" in runner.callback_metrics
    assert not any("knowledge" in key or "description" in key for key in runner.callback_metrics)
