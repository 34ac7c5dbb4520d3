"""A packed batch is its sentences one by one, in loss and gradients; without a definition it teaches nothing."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_facts
import torch
from conftest import tiny_causal
from torch.utils.flop_counter import FlopCounterMode

from kedit.distill.batch import compose
from kedit.distill.data import DistillData
from kedit.distill.loss import Divergence, distill_loss
from kedit.distill.module import DistillModule
from kedit.distill.plan import Plan, Protocol
from kedit.distill.rows import Kind, Sentence, make_rows
from kedit.distill.student import Student
from kedit.distill.teacher import CachedTeacher, live_states
from kedit.lm.adapters import Lora
from kedit.lm.backbones import load_tokenizer, output_head
from kedit.lm.causal import states
from kedit.lm.divergences import Head

WEIGHTS = [1.0, 0.5, 0.25]
TEMPERATURE = 2.0


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(tiny_facts.base())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))


def transfer(tokenizer, with_definition=True, positions="after_mention"):
    """Three sentences of each of four facts, and one of each other kind of each."""
    sentences = []
    for number, fact in enumerate(tiny_facts.TinyFacts().load().facts):
        texts = [frame.format(fact.name) for frame in tiny_facts.FRAMES]
        starts = [text.index(fact.name) for text in texts]
        sentences += [
            Sentence(number, fact.definition if with_definition else "", text, (start, start + len(fact.name)))
            for text, start in zip(texts, starts, strict=True)
        ]
        sentences.append(Sentence(number, "", "The river of the north is old.", None, Kind.TEXT))
        sentences.append(Sentence(number, "", "Karsk town walked home.", (0, 10), Kind.SWAPPED))
    rows = make_rows(tokenizer, sentences, positions=positions)
    assert not rows.skipped
    return rows


def distilled(student, rows, batch, teacher_ND, edits=()):
    with student.editing(edits):
        student_ND = states(student.model, batch.rows).flatten(0, 1)[batch.where_N]
    divergence = Divergence(temperature=TEMPERATURE)
    loss, sums, counts = distill_loss(
        student_ND, student.head, (teacher_ND, student.initial_head), batch.weights_N, batch.kinds_N, divergence
    )
    return loss, sums, counts, student_ND


def one_by_one(model, teacher, rows, numbers):
    """The loss as it is defined: a plain pass for each sentence and whole distributions."""
    total = sum(len(rows.rows[number].scored) for number in numbers)
    loss = 0.0
    for number in numbers:
        row = rows.rows[number]
        read = [torch.as_tensor(ids.astype(np.int64))[None] for ids in (rows.student_ids(row), rows.teacher_ids(row))]
        scored = torch.as_tensor(row.scored.astype(np.int64))
        student_PV = model(input_ids=read[0]).logits[0, -len(row.ids) :][scored] / TEMPERATURE
        with torch.no_grad():
            teacher_PV = teacher(input_ids=read[1]).logits[0, -len(row.ids) :][scored] / TEMPERATURE
        kl = torch.nn.functional.kl_div(
            student_PV.log_softmax(-1), teacher_PV.log_softmax(-1), log_target=True, reduction="sum"
        )
        loss = loss + TEMPERATURE**2 * WEIGHTS[row.kind] * kl / total
    return loss


@pytest.mark.parametrize("positions", ["after_mention", "all"])
@pytest.mark.parametrize("numbers", [range(20), [7, 3, 3, 18, 4]])
def test_scored_positions_read_the_right_tokens(tokenizer, positions, numbers):
    rows = transfer(tokenizer, positions=positions)
    batch = compose(rows, np.array(numbers), 40, WEIGHTS, (0, 1, 2, 3), 0)
    assert len(batch.rows.ids_BL) > 1  # several rows
    assert batch.rows.document_BL.max() > 0  # of several sentences
    assert batch.rows.ids_BL.shape[1] <= 40
    assert sorted(batch.numbers) == sorted(numbers)
    flat, place = batch.rows.ids_BL.flatten(), 0
    for number in batch.numbers:
        row = rows.rows[number]
        here = batch.where_N[place : place + len(row.scored)]
        assert flat[here].tolist() == row.ids[row.scored].tolist()
        assert batch.rows.position_BL.flatten()[here].tolist() == (row.scored + len(rows.start)).tolist()
        assert set(batch.kinds_N[place : place + len(row.scored)].tolist()) == {row.kind}
        place += len(row.scored)
    assert place == len(batch.where_N) == batch.target_tokens
    wanted = torch.tensor(WEIGHTS)[batch.kinds_N] / batch.target_tokens
    torch.testing.assert_close(batch.weights_N, wanted)
    assert batch.positions == batch.rows.ids_BL.numel()
    assert batch.padding == int((batch.rows.document_BL < 0).sum())
    assert batch.lengths.sum() == batch.positions - batch.padding


@pytest.mark.parametrize("edits", ["joint", "independent"])
def test_a_process_without_rows_has_a_batch_that_weighs_nothing(tokenizer, edits):
    """In a last batch of one row the three other processes must still take part in the step."""
    data = DistillData(facts="unused", batch_sentences=1, row_tokens=64)
    data.rows = transfer(tokenizer)
    data.plan = Plan([[0, 1], [5, 6]], Protocol(edits=edits), 1, 0, edits == "independent")
    for rank in range(4):
        module = SimpleNamespace(position_limit=None)
        data.trainer = SimpleNamespace(
            global_rank=rank, world_size=4, lightning_module=module, accumulate_grad_batches=1
        )
        batch = data.make_batch(0, 1)
        assert batch.numbers == data.plan.rows(0, 1).reshape(-1).tolist()
        assert bool(batch.weights_N.any()) == (rank == 0)


def test_wordings_of_probes_are_left_out_of_a_file_too(tmp_path, caplog):
    facts, said = tiny_facts.write_jsonl(tmp_path, ["Maro Tellin"])
    data = DistillData(facts=facts, transfer=said)
    data.knowledge = data.load()
    assert len(data.edit_sentences()) == 3
    data.knowledge.forbidden = ["{name} walked .+?in the"]
    with caplog.at_level("INFO"):
        assert [one.text for one in data.edit_sentences()] == [
            frame.format("Maro Tellin") for frame in tiny_facts.FRAMES[1:]
        ]
    assert "1 sentences in the wording of probes" in caplog.text


@pytest.mark.parametrize("edits", ["joint", "independent"])
def test_the_mean_over_processes_is_the_whole_batch(tokenizer, edits):
    """However unevenly positions are dealt out: DDP takes the mean of gradients."""
    data = DistillData(facts="unused", batch_sentences=5, row_tokens=64)
    data.rows = transfer(tokenizer, positions="all")
    data.plan = Plan([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], Protocol(edits=edits), 5, 0, edits == "independent")
    module = SimpleNamespace(position_limit=None)

    def weights(world, accumulated=1):
        found = {}
        for rank, number in product(range(world), range(accumulated)):
            data.trainer = SimpleNamespace(
                global_rank=rank, world_size=world, lightning_module=module, accumulate_grad_batches=accumulated
            )
            batch = data.make_batch(0, number)
            counts = [len(data.rows.rows[number].scored) for number in batch.numbers]
            for number, own in zip(batch.numbers, batch.weights_N.split(counts), strict=True):
                if own.any():
                    assert number not in found
                    found[number] = own.double().mean().item() / world / accumulated
        return found

    whole = weights(1)
    assert len(whole) == (5 if edits == "joint" else 10)
    for world in (2, 3, 4, 7, 8):
        assert weights(world) == pytest.approx(whole)
    if edits == "joint":  # in five batches of one sentence a process has none now and then
        for world, accumulated in ((1, 2), (2, 2), (2, 3), (8, 5)):
            assert weights(world, accumulated) == pytest.approx(whole)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "llama"])
def test_packed_is_one_by_one_in_loss_and_gradients(tokenizer, name):
    teacher, model, naive = (tiny_causal(name, len(tokenizer), initializer_range=0.1) for _ in range(3))
    rows = transfer(tokenizer)
    numbers = np.array([0, 1, 2, 3, 4, 6, 9, 12, 13, 14])
    student = Student(model, None)
    torch.manual_seed(1)
    with torch.no_grad():
        for mine, other in zip(model.parameters(), naive.parameters(), strict=True):
            mine += 0.02 * torch.randn_like(mine)
            other.copy_(mine)
    cached = CachedTeacher(teacher, tokenizer, rows)
    batch = compose(rows, numbers, 60, WEIGHTS, (0, 1, 2), 0)
    assert len(batch.rows.ids_BL) < len(numbers)
    loss, sums, counts, _ = distilled(student, rows, batch, cached(batch.numbers))
    loss.backward()
    wanted = one_by_one(naive, teacher, rows, numbers)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    largest = max(float(other.grad.abs().max()) for other in naive.parameters())
    for mine, other in zip(model.parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-6 * max(1.0, largest))
    assert counts.tolist() == [(batch.kinds_N == kind).sum() for kind in range(3)]
    assert (sums > 0).all()


@pytest.mark.parametrize("lora", [None, Lora(rank=1)])
def test_operations_are_those_that_are_made(tokenizer, lora):
    """Frozen weights have no gradients: counted as in full training, an adapter's MFU would be half as high again."""
    rows = transfer(tokenizer)
    model = tiny_causal("gpt2", len(tokenizer), n_embd=64, attn_implementation="eager")
    batch = compose(rows, np.array([0]), 60, WEIGHTS, (0,), 0)
    student = Student(model, lora)
    with FlopCounterMode(display=False) as counter:
        distilled(student, rows, batch, torch.randn(batch.target_tokens, 64))[0].backward()
    module = SimpleNamespace(model=model, student=student, lora=lora, divergence=Divergence())
    counted = DistillModule._flops(module, batch)  # type: ignore[arg-type]
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_side_by_side_each_edit_has_rows_and_a_mean_of_its_own(tokenizer):
    rows = transfer(tokenizer)
    numbers = np.array([[0, 1, 3], [5, 7, 9]])
    batch = compose(rows, numbers, 40, WEIGHTS, (0, 1), 2)
    assert (batch.facts, batch.stage) == ((0, 1), 2)
    assert batch.numbers == [0, 1, 3, 5, 7, 9]  # edit by edit
    assert batch.rows.ids_BL.shape[0] == 6
    assert batch.rows.document_BL.max() == 0
    width = batch.rows.ids_BL.shape[1]
    edit_N = batch.where_N // width // 3
    for edit in range(2):
        mine = edit_N == edit
        torch.testing.assert_close(batch.weights_N[mine], torch.tensor(WEIGHTS)[batch.kinds_N[mine]] / mine.sum())
    student = Student(tiny_causal("gpt2", len(tokenizer)), Lora(rank=2), 2)
    teacher_ND = torch.randn(len(batch.where_N), 32)
    both, _, _, _ = distilled(student, rows, batch, teacher_ND, [0, 1])
    alone = 0.0
    for edit in range(2):
        one = compose(rows, numbers[edit], 40, WEIGHTS, (edit,), 2)
        of_N = np.repeat(batch.numbers, [len(rows.rows[number].scored) for number in batch.numbers])
        order = np.concatenate([np.flatnonzero(of_N == number) for number in one.numbers])
        alone += distilled(student, rows, one, teacher_ND[order], [edit])[0].item()
    assert both.item() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_without_a_definition_there_is_nothing_to_learn(tokenizer, lora):
    """The teacher is read live by the same forward pass: loss and gradients are 0, not nearly 0."""
    rows = transfer(tokenizer, with_definition=False)
    assert len(rows.prefixes) == 1
    model = tiny_causal("gpt2", len(tokenizer))
    student = Student(model, lora)
    batch = compose(rows, np.arange(20), 64, WEIGHTS, (0, 1, 2, 3), 0)
    with torch.no_grad(), student.initial():
        teacher_ND = states(model, batch.rows).flatten(0, 1)[batch.where_N]
    loss, sums, _, student_ND = distilled(student, rows, batch, teacher_ND)
    assert torch.equal(student_ND, teacher_ND)
    loss.backward()
    assert loss.item() == 0
    assert sums.tolist() == [0, 0, 0]
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    assert gradients
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
def test_without_a_definition_the_cached_teacher_says_the_same(tokenizer, dtype, most):
    """Its batches have another shape, so that sums differ in the last bits; in float64 these do not show."""
    rows = transfer(tokenizer, with_definition=False)
    model = tiny_causal("gpt2", len(tokenizer)).to(dtype)
    cached = CachedTeacher(model, tokenizer, rows)
    student = Student(model, None)
    batch = compose(rows, np.arange(20), 64, WEIGHTS, (0, 1, 2, 3), 0)
    loss, _, _, _ = distilled(student, rows, batch, cached(batch.numbers))
    assert abs(loss.item()) < most


def test_with_a_definition_there_is(tokenizer):
    rows = transfer(tokenizer)
    model = tiny_causal("gpt2", len(tokenizer))
    batch = compose(rows, np.arange(20), 64, WEIGHTS, (0, 1, 2, 3), 0)
    teacher_ND = live_states(model, rows.prefixes, [rows.rows[number] for number in batch.numbers])
    loss, sums, counts, _ = distilled(Student(model, None), rows, batch, teacher_ND)
    assert loss.item() > 0.01
    assert sums[Kind.EDIT] > 0.01
    assert sums[1:].max() < 1e-7  # texts are read without a definition by both
    assert counts.min() > 0
    assert Head(*output_head(model)).weight_VD.shape[0] == len(tokenizer)
