"""What a run says it will take, by formula and by what its first forward pass keeps, beside what it took."""

import re
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_causal, tiny_model
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from test_running_callbacks import KeptRows
from tiny_training import PER_EPOCH, Data, Model
from torch import nn

from kedit.lm.activations import Kept, activation_bytes
from kedit.running import taken
from kedit.running.estimate import RunEstimate, _Saved
from kedit.running.memory import (
    GIB,
    Memory,
    Sharing,
    Sizes,
    gib,
    moments_of,
    remedy,
    sharing,
    sizes,
    standing_memory,
)
from kedit.running.position import TrainingPosition
from kedit.running.taken import Baseline, free_host_memory

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
N = 8e9
OWN = Sizes(int(N), 0, int(4 * N), 0)


class Sized(Data):
    def make_batch(self, epoch, batch):
        made = super().make_batch(epoch, batch)
        made.positions, made.target_tokens = 50, 30
        return made


def test_a_run_says_what_it_will_take_and_what_it_took(tmp_path, capsys):
    seed_everything(1, verbose=False)
    logger = KeptRows(tmp_path)
    told = RunEstimate()
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, enable_progress_bar=False, enable_model_summary=False, logger=logger,
        enable_checkpointing=False, default_root_dir=tmp_path, callbacks=[TrainingPosition(), told],
    )  # fmt: skip
    trainer.fit(Model(), datamodule=Sized())
    lines = capsys.readouterr().out.splitlines()
    assert re.match(
        r"memory of a device, one process, AdamW: [\d.e-]+ GiB .* for 50 positions; [\d.]+ GiB are", lines[0]
    )
    assert lines[1] == f"{PER_EPOCH} steps of about 50 positions; how long they take is told after 7"
    assert re.match(
        r"measured over 5 steps: .* s a step, about [\d,]+ positions/s, about [\d,]+ target tokens/s, 0:0", lines[2]
    )
    assert re.match(r"memory of training [\d.e-]+ GiB, estimated", lines[-1])
    weights = 4 * (8 * 16 + 16 + 16 + 1)
    assert (told.memory.weights, told.memory.gradients, told.memory.states) == (weights, weights, 2 * weights)
    # of four rows: the input, what dropout leaves and where, and what goes into the last layer
    assert 4 * 4 * (8 + 16) <= told.memory.activations <= 4 * 4 * (8 + 3 * 16 + 8)
    row = next(row for row in logger.rows if "run/memory_measured_gib" in row)
    assert row["run/memory_estimated_gib"] * GIB == pytest.approx(told.memory.total)


def estimated(tmp_path, capsys, **arguments) -> list[str]:
    trainer = Trainer(
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, logger=False,
        enable_checkpointing=False, default_root_dir=tmp_path, callbacks=[TrainingPosition(), RunEstimate()],
        **arguments,
    )  # fmt: skip
    trainer.fit(Unscheduled(), datamodule=Sized())
    return capsys.readouterr().out.splitlines()


class Unscheduled(Model):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


def test_validations_do_not_keep_the_speed_from_being_told(tmp_path, capsys):
    lines = estimated(tmp_path, capsys, max_epochs=1, val_check_interval=3)
    assert sum(line.startswith("measured over 5 steps") for line in lines) == 1


def test_without_a_number_of_steps_no_time_left_is_told(tmp_path, capsys):
    lines = estimated(tmp_path, capsys, max_epochs=-1, max_time={"seconds": 1})
    assert lines[1].startswith("as many steps as there is time for of about 50 positions; how long")
    (measured,) = [line for line in lines if line.startswith("measured over 5 steps")]
    assert "left" not in measured


def test_a_run_that_is_over_before_it_is_timed_promises_nothing(tmp_path, capsys):
    assert estimated(tmp_path, capsys, max_steps=3)[1] == "3 steps of about 50 positions"


def test_counting_what_is_kept_changes_no_number_and_keeps_nothing_alive():
    model = tiny_causal("llama").train()
    ids = torch.arange(12)[None] + 3
    plain = torch.autograd.grad(model(ids, labels=ids).loss, model.parameters())
    saved = _Saved(model.parameters())
    with saved.hooks:
        loss = model(ids, labels=ids).loss
    assert all(
        torch.equal(one, other) for one, other in zip(torch.autograd.grad(loss, model.parameters()), plain, strict=True)
    )
    assert saved.bytes > 12 * 32 * 4
    values = torch.rand(1000, requires_grad=True)
    again = _Saved([values])
    with again.hooks:
        result = values.exp()
    gone = torch.multiprocessing.reductions.StorageWeakRef(result.untyped_storage())
    del result
    assert again.bytes == 4000
    assert gone.expired()


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "qwen3", "bart", "t5", "t5-v1.1"])
def test_the_formula_is_near_what_autograd_keeps(name):
    sequence = name in ("bart", "t5", "t5-v1.1")
    model = (tiny_model(name) if sequence else tiny_causal(name)).train()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    model.set_attn_implementation("sdpa")
    ids = torch.randint(3, 90, (3, 64))
    saved = _Saved(model.parameters())
    with saved.hooks:
        model(ids, use_cache=False, **({"decoder_input_ids": ids} if sequence else {})).logits.sum().backward()
    kept = activation_bytes(model.config, ids.numel() * (1 + sequence), 64, Kept())
    assert 0.6 < kept / saved.bytes < 1.6
    checkpointed = activation_bytes(model.config, ids.numel() * (1 + sequence), 64, Kept(checkpointing=True))
    assert checkpointed < kept
    assert activation_bytes(model.config, 64, 64, Kept(scores=True)) > activation_bytes(model.config, 64, 64, Kept())


@pytest.mark.parametrize(
    ("shared", "each"),
    [
        (Sharing(), (4, 4, 8)),
        (Sharing("ddp", 8), (4, 8, 8)),
        (Sharing("ddp", 8, viewed=True), (4, 4, 8)),
        (Sharing("fsdp2", 8, 3), (0.5, 0.5, 1)),
        # in 16 bits: 2 of weights, 2 of gradients, 12 of float32 weights and moments
        (Sharing("zero", 8, 1, half=True), (2, 2, 1.5)),
        (Sharing("zero", 8, 2, half=True), (2, 0.25, 1.5)),
        (Sharing("zero", 8, 3, half=True), (0.25, 0.25, 1.5)),
        (Sharing("zero", 8, 2, half=True, offloaded=True), (2, 0.25, 0)),
        (Sharing("zero", 2, 1), (4, 4, 4)),
    ],
    ids=str,
)
def test_who_holds_what(shared, each):
    memory = standing_memory(OWN, 0, 2, shared, autocast=False)
    assert (memory.weights / N, memory.gradients / N, memory.states / N) == pytest.approx(each)


def test_frozen_weights_have_no_gradients_and_casts_are_counted():
    memory = standing_memory(Sizes(10, 90, 40, 360), 1000, 2, Sharing(), autocast=True)
    assert memory == Memory(weights=1400, copies=200, gradients=40, states=80)
    assert standing_memory(Sizes(10, 90, 20, 180), 0, 0, Sharing(), autocast=True).copies == 0
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert sizes([*layer.parameters(), layer.weight]) == Sizes(6, 2, 24, 8)


def test_the_optimisers_state_is_that_of_its_kind():
    parameters = [nn.Parameter(torch.ones(2))]
    assert moments_of(torch.optim.AdamW(parameters)) == 2
    assert moments_of(torch.optim.Adam(parameters, amsgrad=True)) == 3
    assert moments_of(torch.optim.SGD(parameters, lr=1)) == 0
    assert moments_of(torch.optim.SGD(parameters, lr=1, momentum=0.9)) == 1


def test_the_strategy_says_how_it_shares():
    strategy = DDPStrategy(gradient_as_bucket_view=True)
    assert sharing(SimpleNamespace(strategy=strategy, world_size=8)) == Sharing("ddp", 8, viewed=True)
    from lightning.pytorch.strategies import DeepSpeedStrategy

    zero = DeepSpeedStrategy(stage=2)
    found = sharing(SimpleNamespace(strategy=zero, world_size=8, precision="bf16-mixed"))
    assert found == Sharing("zero", 8, 2, bucket=4e8, half=True)


def test_what_does_not_fit_is_told_with_the_option_to_change(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(taken, "free_host_memory", lambda: 100.0)
    trainer = Trainer(
        accelerator="cpu", max_steps=2, enable_progress_bar=False, enable_model_summary=False, logger=False,
        enable_checkpointing=False, default_root_dir=tmp_path, callbacks=[TrainingPosition(), RunEstimate()],
    )  # fmt: skip
    trainer.fit(Model(), datamodule=Sized())
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("this may not fit")]
    assert len(said) == 1
    assert "GiB are free; share it over more devices by ZeRO (configs/hardware/node8.yaml" in said[0].replace(
        f"{gib(100.0)} are free", "GiB are free"
    )
    large = Memory(weights=1, activations=9)
    assert remedy(large, Sharing(), 8, False) == (
        "raise trainer.accumulate_grad_batches (8), or set model.init_args.backbone.gradient_checkpointing true"
    )
    assert "checkpointing" not in remedy(large, Sharing(), 8, True)
    assert remedy(Memory(states=9), Sharing("zero", 8, 1), 1, True).endswith("stage (1)")
    assert "offload_optimizer" in remedy(Memory(states=9), Sharing("zero", 8, 3), 1, True)


def test_the_memory_of_a_process_is_what_it_grew_by():
    baseline = Baseline(torch.device("cpu"), 1000.0)
    before = baseline.peak
    block = torch.ones(50 << 20, dtype=torch.uint8)
    assert 45 << 20 < baseline.peak - before < 80 << 20
    del block
    assert baseline.peak - before > 45 << 20


def test_free_memory_is_the_machines_or_the_groups(tmp_path):
    assert free_host_memory(tmp_path) == float("inf")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   50 kB\n")
    assert free_host_memory(tmp_path) == 50 * 1024
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    (tmp_path / "sys/fs/cgroup/memory.current").write_text("3000\n")
    assert free_host_memory(tmp_path) == 50 * 1024
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("10000\n")
    assert free_host_memory(tmp_path) == 7000
