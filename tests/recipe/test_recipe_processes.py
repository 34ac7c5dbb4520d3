"""Training is the same for any number of processes: the same batches, gradients and losses, weights and figures."""

import sys
import tempfile
from collections import Counter
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_edits
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoConfig, AutoModel

from kedit.lm.backbones import Backbone, load_causal, load_tokenizer
from kedit.recipe import RecipeData
from kedit.recipe.batch import Kind
from kedit.recipe.data import Evaluation
from kedit.recipe.module import RecipeModule, gate_sums
from kedit.recipe.networks import SlotNetworks
from kedit.recipe.objective import SlotObjective, Weights
from kedit.recipe.paper import PaperNetworks
from kedit.recipe.paper_objective import PaperObjective
from kedit.recipe.prefix import PrefixedModel
from kedit.recipe.processes import Alone, Together
from kedit.recipe.texts import TextEncoder
from kedit.recipe.unedited import Unedited
from kedit.running.position import TrainingPosition

sys.path.append(str(Path(__file__).parents[1] / "running"))
from two_processes import in_processes

TRUNK = {"model_type": "roberta", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 16, "max_position_embeddings": 66, "type_vocab_size": 1}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny_edits.base(tmp_path_factory.mktemp("base"))
    tokenizer = load_tokenizer(str(folder))
    return PrefixedModel(load_causal(Backbone(str(folder)), tokenizer), tokenizer, bos=True)


# batches --------------------------------------------------------------------------------------------------------------


def recipe_data(model, reads_target=False, **options):
    given = {"batch_edits": 5, "negatives": 4, "unrelated_queries": 3, "reworded": 0.5} | options
    evaluation = Evaluation(validation_edits=3)
    data = RecipeData(tiny_edits.TinyEdits(), unrelated=[tiny_edits.TinyQuestions()], evaluation=evaluation, **given)
    module = SimpleNamespace(
        text_encoder=lambda: TextEncoder(model.tokenizer, model.tokenizer, 64), asking=model.asking,
        tokenizer=model.tokenizer, key_reads_target=reads_target, reads_locality=True,
    )  # fmt: skip
    data.trainer = trainer(0, 1, 1, module)
    data.setup("fit")
    return data


def trainer(rank, world, accumulated, module):
    return SimpleNamespace(
        global_rank=rank,
        world_size=world,
        accumulate_grad_batches=accumulated,
        lightning_module=module,
        limit_train_batches=1.0,
    )


def as_process(data, rank, world, accumulated=1):
    data.trainer = trainer(rank, world, accumulated, data.module)
    return data


def test_a_run_is_resumed_on_what_it_was_trained_on(model, monkeypatch):
    saved = recipe_data(model).trained_on
    assert recipe_data(model).trained_on == saved
    assert len({tuple(saved.items()), tuple(recipe_data(model, negatives=5).trained_on.items())}) == 2
    monkeypatch.setattr(tiny_edits, "TOWNS", ("Velmar", "Padri", "Orsan"))
    other = recipe_data(model).trained_on
    assert [name for name in saved if other[name] != saved[name]] == ["texts of edits and of data.unrelated"]


def texts_of(batch):
    return [tuple(row[real].tolist()) for row, real in zip(batch.ids_NL, batch.real_NL, strict=True)]


def dealt_texts(parts, count):
    """Texts that were dealt out, in their order; those that fill up are left out."""
    return list(chain(*zip(*parts, strict=True)))[:count]


def whole(parts):
    """What the processes' parts are together."""
    first = parts[0]
    queries, rows = Counter(), Counter()
    for rank, part in enumerate(parts):
        queries.update(zip(texts_of(part.queries), part.kind_Q.tolist(), part.own_Q.tolist(),
                           map(tuple, part.ignore_QK.tolist()), strict=False))  # fmt: skip
        places = [place * len(parts) + rank for place in part.edit_R.tolist()]
        rows.update(row for row in zip(part.asked, part.kind_R.tolist(), places, strict=True) if row[1] >= 0)
        assert len(part.queries) == max(1, len(part.own_Q))
        assert (part.edit_count, part.negative_count, part.weight) == (
            first.edit_count, first.negative_count, first.weight)  # fmt: skip
        assert torch.equal(part.coin_B, first.coin_B)
    numbers = [number for _, number in sorted((place, number) for rank, part in enumerate(parts)
               for place, number in zip(range(rank, 99, len(parts)), part.numbers, strict=False))]  # fmt: skip
    return {
        "numbers": numbers,
        "keys": dealt_texts([texts_of(part.keys) for part in parts], first.edit_count),
        "edits": dealt_texts([texts_of(part.edits) for part in parts], first.edit_count),
        "negatives": dealt_texts([texts_of(part.negatives) for part in parts], first.negative_count),
        "coins": first.coin_B.tolist(),
        "queries": queries,
        "rows": rows,
        "weight": first.weight,
    }


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("reads_target", [False, True])
def test_any_number_of_processes_makes_the_same_batches(model, accumulated, reads_target):
    data = recipe_data(model, reads_target)
    batches = range(data.steps_per_epoch * accumulated)  # the last step is a partial one
    alone = [whole([as_process(data, 0, 1, accumulated).make_batch(1, batch)]) for batch in batches]
    sizes = [len(one["numbers"]) for one in alone]
    assert sizes == ([5, 5, 3] if accumulated == 1 else [3, 2, 3, 2, 2, 1])
    assert all(len(one["negatives"]) == 4 for one in alone)
    assert all(sum(kind == Kind.UNRELATED for _, kind, *_ in one["queries"].elements()) == 3 for one in alone)
    for world in (2, 4, 8):
        for batch, expected in zip(batches, alone, strict=True):
            parts = [as_process(data, rank, world, accumulated).make_batch(1, batch) for rank in range(world)]
            assert whole(parts) == expected
            assert len({len(part.keys) for part in parts}) == len({len(part.negatives) for part in parts}) == 1
    once = recipe_data(model, reads_target)
    steps = [once.make_batch(1, step).numbers for step in range(once.steps_per_epoch)]
    assert steps == [list(chain(*(one["numbers"] for one in alone[start : start + accumulated])))
                     for start in range(0, len(alone), accumulated)]  # fmt: skip


def test_of_less_edits_than_accumulated_batches_none_counts_twice(model):
    data = as_process(recipe_data(model, batch_edits=6), 1, 2, 2)
    last = [data.make_batch(0, batch) for batch in range(data.batches_per_epoch)][-2:]
    assert [batch.weight for batch in last] == [2, 0]
    assert [batch.numbers for batch in last] == [[], []]


# gradients and losses -------------------------------------------------------------------------------------------------


def networks_of(model, reference):
    torch.manual_seed(0)
    config = AutoConfig.for_model(vocab_size=len(model.tokenizer), initializer_range=0.3, **TRUNK)
    trunk = AutoModel.from_config(config)
    if reference:
        return PaperNetworks(trunk, model.width, key_width=16, sentinel_tokens=2).eval()
    networks = SlotNetworks(trunk, model.width, slots=2, slot_width=8).eval()
    for part in (networks.slot_context, networks.prompt_context, networks.sentinel_of_query):
        torch.nn.init.normal_(part.weight)
    return networks


def learned(model, data, reference, batch, processes):
    """Of one batch: loss, terms, scores of the gate, and the gradient of every weight, as averaged."""
    networks = networks_of(model, reference)
    unedited = Unedited(model, data.pool)
    weights = Weights(locality=0.5)
    objective = PaperObjective(weights) if reference else SlotObjective(weights)
    local = [asked for asked, kind in zip(batch.asked, batch.kind_R.tolist(), strict=True) if kind == Kind.LOCALITY]
    base_nH = unedited.states(local) if local else torch.zeros(0, model.width)
    loss, terms, found = objective(networks, model, batch, base_nH, processes)
    loss.backward()
    assert all(one.grad is not None for one in networks.parameters())
    found = {"loss": loss.detach(), **terms, **processes.means(gate_sums(found, batch))}
    found |= {f"gradient of {name}": one.grad for name, one in networks.named_parameters()}
    return {name: processes.total(value) / processes.world for name, value in found.items()}


def partly(batch_edits, negatives=4, unrelated=3):
    return {"batch_edits": batch_edits, "negatives": negatives, "unrelated_queries": unrelated}


SIZES = [
    partly(5),  # not as many for each
    partly(1),  # a process has no edit, yet unrelated texts
    partly(1, negatives=0, unrelated=0),  # nor those
    partly(2, negatives=1, unrelated=1),
    partly(4),  # the last step has one edit
]


def cases(model, sizes):
    for reference in (False, True):
        for size in sizes:
            data = recipe_data(model, reference, **size)
            for number in {0, data.steps_per_epoch - 1}:
                yield f"{reference} {size} {number}", data, reference, number


@pytest.fixture(scope="module")
def alone(model):
    return {name: learned(model, data, reference, data.make_batch(1, number), Alone())
            for name, data, reference, number in cases(model, SIZES)}  # fmt: skip


@pytest.mark.parametrize(("world", "sizes"), [(2, SIZES), (3, SIZES[:2])])
def test_gradients_and_losses_are_those_of_one_process(model, alone, world, sizes):
    assert all(values["loss"] > 1 and values["generality"] > 0 for values in alone.values())
    terms = [name for name in next(iter(alone.values())) if name.startswith(("finding", "generality", "locality"))]
    assert all(any(values.get(name, 0) > 0 for values in alone.values()) for name in terms)

    def work(rank):
        torch.distributed.init_process_group("gloo")
        for name, data, reference, number in cases(model, sizes):
            batch = as_process(data, rank, world).make_batch(1, number)
            for part, value in learned(model, data, reference, batch, Together(world)).items():
                expected = alone[name][part]
                assert (value - expected).abs().max() <= 1e-5 * max(1, expected.abs().max()), (name, part)

    assert in_processes(work, world) == [0] * world


# runs -----------------------------------------------------------------------------------------------------------------


class Diary(Callback):
    """What was logged after each step, and in each validation."""

    def __init__(self):
        self.steps, self.validations = [], []

    def on_train_batch_end(self, trainer, *_):
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()
                           if name.startswith(("train/loss", "train/gate"))})  # fmt: skip

    def on_validation_end(self, trainer, *_):
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self.validations.append(found)


def train_and_judge(folder, base, world, reference):
    """One epoch whose last step has one edit, and a test; leaves a diary, and what TensorBoard is told."""
    seed_everything(3, verbose=False)
    # SGD, for AdamW would not see that all gradients are too large, and makes much of rounding where they are small
    module = RecipeModule(
        Backbone(str(base)), trunk=Backbone(architecture=TRUNK), reference=reference, key_width=16, sentinel_tokens=2,
        slots=2, slot_width=8, bos=True, weights=Weights(locality=0.5), optimizer=partial(torch.optim.SGD, lr=0.003),
    )  # fmt: skip
    data = RecipeData(
        *[tiny_edits.TinyEdits(first) for first in (0, 8)], batch_edits=3, negatives=2, unrelated_queries=2,
        **{name: [tiny_edits.TinyQuestions()] for name in ("unrelated", "calibration", "far")},
        evaluation=Evaluation(validation_edits=3, validation_stored=4, max_new_tokens=3, batch=4, immediate=2),
    )  # fmt: skip
    diary, name = Diary(), f"{reference}{world}"
    logger = TensorBoardLogger(folder, name, version="") if name == "False2" else False
    trainer = Trainer(
        accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", max_epochs=1, val_check_interval=4,
        num_sanity_val_steps=0, log_every_n_steps=1, logger=logger, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        callbacks=[TrainingPosition(), diary],
    )  # fmt: skip
    trainer.fit(module, data)
    weights = {name: one.detach().clone() for name, one in module.networks.named_parameters()}
    trainer.test(module, data, verbose=False)
    results = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
    if trainer.is_global_zero:
        found = {"weights": weights, "steps": diary.steps, "validations": diary.validations, "results": results}
        torch.save(found, folder / f"{name}.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    base = tiny_edits.base(folder / "base")
    for world in (1, 2):

        def work(rank, world=world):
            tempfile.tempdir = str(folder)
            for reference in (False, True):
                train_and_judge(folder, base, world, reference)

        assert in_processes(work, world) == [0] * world
    return folder


@pytest.mark.parametrize("reference", [False, True])
def test_a_run_of_two_processes_is_that_of_one(runs, reference):
    one, two = (torch.load(runs / f"{reference}{world}.pt", weights_only=True) for world in (1, 2))
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, atol=1e-5, rtol=0)
    assert len(one["steps"]) == 5
    for step, other in zip(one["steps"], two["steps"], strict=True):
        assert {"train/loss", "train/loss/locality", "train/gate/recall"} <= set(step)
        assert other == pytest.approx(step, rel=1e-5, abs=1e-6)
    assert len(one["validations"]) == 1
    assert "val/score" in one["validations"][0]
    assert two["validations"] == one["validations"]
    assert two["results"].keys() == one["results"].keys()
    judged = [name for name in one["results"] if not name.endswith(("edit_seconds", "added_inference_share"))]
    assert {"test/reliability/free", "test/false_activation_rate"} <= set(judged)
    assert {name: two["results"][name] for name in judged} == {name: one["results"][name] for name in judged}


def test_one_process_draws_and_none_leaves_a_repository(runs):
    writers = {file.name.split(".")[-2] for file in (runs / "False2").glob("events*")}  # the process's number
    assert len(writers) == 1
    board = EventAccumulator(str(runs / "False2"), {"images": 0, "histograms": 0}).Reload()
    assert len(board.Images("lifelong/recipe")) == len(board.Histograms("similarity/own")) == 1
    assert not list(runs.glob("kedit-edits-*"))
