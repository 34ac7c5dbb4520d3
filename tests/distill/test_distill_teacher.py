"""The cached teacher says what the live one says, which says what one forward pass a sentence says; and a cache that
is cut, damaged or of another teacher is never taken for the right one.
"""

import json
import multiprocessing
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import CAUSAL_ARCHITECTURES, tiny_causal
from filelock import FileLock
from peft import LoraConfig, get_peft_model

from kedit.distill import parts as parts_file
from kedit.distill import teacher as teacher_file
from kedit.distill.rows import Kind, Sentence, Template, make_rows
from kedit.distill.teacher import CachedTeacher, live_states, model_fingerprint
from kedit.editing.probes import Fact
from kedit.editing.sources import DataError
from kedit.lm.backbones import output_head
from kedit.lm.causal import pack, states
from kedit.lm.divergences import Head, TopK, linear_divergence, top_k

CLOSE = {"atol": 2e-5, "rtol": 2e-4}
"""Of float32 states of size 1 to 5: batches of other shapes are summed in another order."""
FACTS = [
    Fact("q1", "Maro Tellin", "Maro Tellin is a painter born in Velmar.", where="facts.jsonl:1"),
    Fact("q2", "Grey Bridge", "The Grey Bridge was built in 1893.", where="facts.jsonl:2"),
]
TEXTS = [
    (0, "Maro Tellin painted the town.", (0, 11)),
    (1, "In 1893 the Grey Bridge stood in Velmar; the Grey Bridge is high.", (12, 23)),
    (0, "The north knows Maro Tellin, who lives there.", (16, 27)),
    (1, "Few cross the Grey Bridge today.", (14, 25)),
    (0, "Maro Tellin's company is a species.", (0, 11)),
]


def transfer(tokenizer, facts=FACTS, template=None, positions="after_mention", texts=TEXTS):
    sentences = [Sentence(fact, facts[fact].definition, text, mention) for fact, text, mention in texts]
    sentences.append(Sentence(-1, "", "Velmar is a harbour town.", None, Kind.TEXT))
    return make_rows(tokenizer, sentences, template, positions, 512, facts)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folders):
    from kedit.lm.backbones import load_tokenizer

    return load_tokenizer(tokenizer_folders["bart"])


@pytest.fixture
def rows(tokenizer):
    return transfer(tokenizer)


@pytest.fixture
def model(tokenizer):
    return tiny_causal("gpt2", len(tokenizer))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    return tmp_path


@torch.no_grad()
def one_by_one(model, rows):
    """A plain forward pass for each sentence, definition and all."""
    said = []
    for row in rows.rows:
        ids = torch.as_tensor(rows.teacher_ids(row).astype(np.int64))[None]
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, -len(row.ids) :]
        said.append(hidden[torch.as_tensor(row.scored)])
    return said


@pytest.mark.parametrize("name", CAUSAL_ARCHITECTURES)
def test_cached_is_live_is_one_sentence_at_a_time(name, tokenizer, rows):
    model = tiny_causal(name, len(tokenizer))
    alone = one_by_one(model, rows)
    live = live_states(model, rows.prefixes, rows.rows)
    torch.testing.assert_close(live, torch.cat(alone), **CLOSE)
    teacher = CachedTeacher(model, tokenizer, rows, part_positions=20)
    assert len(list(teacher.folder.glob("*.safetensors"))) > 1
    torch.testing.assert_close(teacher(range(len(rows.rows))), live, **CLOSE)
    for chosen in ([3], [4, 0, 5], [1, 1]):
        wanted = torch.cat([alone[number] for number in chosen])
        torch.testing.assert_close(teacher(chosen), wanted, **CLOSE)
    assert not teacher([0]).requires_grad


def test_it_reads_once_and_never_again(model, tokenizer, rows, cache):
    first = CachedTeacher(model, tokenizer, rows)
    assert first.read == len(rows.rows) == 6
    assert first.folder == cache / "teacher" / first.key
    manifest = json.loads((first.folder / "manifest.json").read_text())
    assert manifest["key"] == first.key
    assert manifest["positions"] == len(first(range(6)))
    model.base_model.forward = None  # nobody may read now
    again = CachedTeacher(model, tokenizer, rows)
    assert again.read == 0
    assert torch.equal(again(range(6)), first(range(6)))


def test_a_large_cache_is_read_by_memory_map(model, tokenizer, rows, monkeypatch):
    held = CachedTeacher(model, tokenizer, rows, part_positions=20)
    monkeypatch.setattr(teacher_file, "IN_MEMORY", 0)
    mapped = CachedTeacher(model, tokenizer, rows, part_positions=20)
    assert torch.equal(mapped([2, 5, 0]), held([2, 5, 0]))


def test_the_mode_of_the_model_is_as_before(tokenizer, rows, tmp_path):
    model = tiny_causal("gpt2", len(tokenizer), resid_pdrop=0.5, embd_pdrop=0.5)
    exact = CachedTeacher(model, tokenizer, rows)
    model.train()
    model.lm_head.eval()
    trained = CachedTeacher(model, tokenizer, rows, cache=tmp_path / "other")
    assert trained.read == 6
    assert torch.equal(trained(range(6)), exact(range(6)))
    assert model.training
    assert model.base_model.drop.training
    assert not model.lm_head.training


def test_an_interrupted_reading_goes_on(model, tokenizer, rows, monkeypatch):
    whole = CachedTeacher(model, tokenizer, rows, part_positions=20)
    wanted = whole(range(6))
    files = sorted(whole.folder.glob("*.safetensors"))
    assert len(files) >= 3
    for path in [*files[1:], whole.folder / "manifest.json"]:
        path.unlink()
    (whole.folder / f".{files[1].name}.1.partial").write_bytes(b"cut")
    stamp = files[0].stat().st_mtime_ns

    calls = []
    real = teacher_file.live_states

    def killed(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(teacher_file, "live_states", killed)
    with pytest.raises(KeyboardInterrupt):
        CachedTeacher(model, tokenizer, rows, part_positions=20)
    assert files[1].exists()
    assert not files[2].exists()
    assert not (whole.folder / "manifest.json").exists()
    monkeypatch.setattr(teacher_file, "live_states", real)
    rest = CachedTeacher(model, tokenizer, rows, part_positions=20)
    assert files[0].stat().st_mtime_ns == stamp
    assert 0 < rest.read < 6
    assert not list(whole.folder.glob(".*.partial"))
    torch.testing.assert_close(rest(range(6)), wanted, **CLOSE)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    bytes_ = bytearray(path.read_bytes())
    bytes_[-5] ^= 1
    path.write_bytes(bytes_)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def exchange(path: Path) -> None:
    path.write_bytes(path.with_name("000001.safetensors").read_bytes())


@pytest.mark.parametrize("harm", [cut, flip, empty, exchange])
def test_a_damaged_part_is_seen_and_computed_anew(model, tokenizer, rows, harm, capsys):
    whole = CachedTeacher(model, tokenizer, rows, part_positions=20)
    path = whole.folder / "000000.safetensors"
    harm(path)
    capsys.readouterr()
    mended = CachedTeacher(model, tokenizer, rows, part_positions=20)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"{path}: ")
    assert said.endswith(": computed anew\n")
    assert 0 < mended.read < 6
    assert CachedTeacher(model, tokenizer, rows, part_positions=20).read == 0
    assert torch.equal(mended(range(6)), whole(range(6)))


def test_a_cache_of_another_model_is_refused(model, tokenizer, rows):
    own = CachedTeacher(model, tokenizer, rows)
    with torch.no_grad():
        model.base_model.wpe.weight.mul_(2)
    other = CachedTeacher(model, tokenizer, rows)
    assert other.folder != own.folder
    for path in own.folder.glob("*.*"):
        path.unlink()
    for path in other.folder.glob("*.*"):
        path.rename(own.folder / path.name)
    with torch.no_grad():
        model.base_model.wpe.weight.div_(2)
    with pytest.raises(DataError, match=rf"holds a teacher of another model \({other.key}, wanted {own.key}\): delete"):
        CachedTeacher(model, tokenizer, rows)


def test_parts_of_another_model_are_not_used(model, tokenizer, rows, capsys):
    """Put there by hand without their manifest, or with a manifest that was cut."""
    own = CachedTeacher(model, tokenizer, rows)
    right = own(range(6))
    with torch.no_grad():
        model.base_model.wpe.weight.mul_(2)
    other = CachedTeacher(model, tokenizer, rows)
    (own.folder / "000000.safetensors").write_bytes((other.folder / "000000.safetensors").read_bytes())
    (own.folder / "manifest.json").write_text('{"key"')
    with torch.no_grad():
        model.base_model.wpe.weight.div_(2)
    again = CachedTeacher(model, tokenizer, rows)
    assert "belongs to another teacher or place: computed anew" in capsys.readouterr().err
    assert torch.equal(again(range(6)), right)
    assert json.loads((own.folder / "manifest.json").read_text())["key"] == own.key


def test_the_key_changes_with_all_that_the_states_depend_on(model, tokenizer, tokenizer_folders):
    from kedit.lm.backbones import load_tokenizer

    other_definition = [replace(FACTS[0], definition="Maro Tellin is a heron."), FACTS[1]]
    other_tokens = load_tokenizer(tokenizer_folders["bart"])
    other_tokens.add_tokens(["unused"])
    larger = tiny_causal("gpt2", len(tokenizer))
    with torch.no_grad():
        larger.base_model.h[1].mlp.c_proj.bias[-1] += 1e-6
    other_epsilon = tiny_causal("gpt2", len(tokenizer), layer_norm_epsilon=1e-4)
    plain = transfer(tokenizer)
    made = {
        "plain": CachedTeacher(model, tokenizer, plain),
        "definition": CachedTeacher(model, tokenizer, transfer(tokenizer, other_definition)),
        "template": CachedTeacher(model, tokenizer, transfer(tokenizer, template=Template("\n"))),
        "positions": CachedTeacher(model, tokenizer, transfer(tokenizer, positions="all")),
        "sentences": CachedTeacher(model, tokenizer, transfer(tokenizer, texts=TEXTS[:4])),
        "order": CachedTeacher(model, tokenizer, transfer(tokenizer, texts=TEXTS[::-1])),
        "tokenizer": CachedTeacher(model, other_tokens, plain),
        "weights": CachedTeacher(larger, tokenizer, plain),
        "setting": CachedTeacher(other_epsilon, tokenizer, plain),
        "kept dtype": CachedTeacher(model, tokenizer, plain, dtype="bfloat16"),
        "top k": CachedTeacher(model, tokenizer, plain, top_k=5),
        "k": CachedTeacher(model, tokenizer, plain, top_k=6),
        "temperature": CachedTeacher(model, tokenizer, plain, top_k=5, temperature=2.0),
    }
    with torch.autocast("cpu", torch.bfloat16):
        made["autocast"] = CachedTeacher(model, tokenizer, plain)
    made["dtype"] = CachedTeacher(tiny_causal("gpt2", len(tokenizer)).bfloat16(), tokenizer, plain)
    keys = [teacher.key for teacher in made.values()]
    assert len(set(keys)) == len(keys)
    assert CachedTeacher(tiny_causal("gpt2", len(tokenizer)), tokenizer, transfer(tokenizer)).key == keys[0]


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("name", ["gpt2", "gptj", "llama"])
def test_an_adapter_leaves_the_fingerprint_and_the_states_as_they_are(name, tokenizer, rows):
    model = tiny_causal(name, len(tokenizer))
    plain = CachedTeacher(model, tokenizer, rows)
    before = model_fingerprint(model)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", modules_to_save=["lm_head"]))
    assert model_fingerprint(wrapped) == model_fingerprint(wrapped.get_base_model()) == before
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    assert model_fingerprint(wrapped) == before
    with pytest.raises(ValueError, match="switch its adapter off"):
        CachedTeacher(wrapped.get_base_model(), tokenizer, rows)
    with wrapped.disable_adapter():
        off = CachedTeacher(wrapped.get_base_model(), tokenizer, rows)
        assert off.read == 0
        live = live_states(wrapped.get_base_model().eval(), rows.prefixes, rows.rows)
    assert off.key == plain.key
    torch.testing.assert_close(off(range(6)), live, **CLOSE)


def test_the_fingerprint_sees_every_weight_and_survives_saving(model, tmp_path):
    first = model_fingerprint(model)
    model.save_pretrained(tmp_path / "saved")
    assert model_fingerprint(type(model).from_pretrained(tmp_path / "saved")) == first
    assert model_fingerprint(type(model).from_pretrained(tmp_path / "saved").bfloat16()) != first
    seen = {first}
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        seen.add(model_fingerprint(model))
    assert len(seen) == 1 + len(list(model.parameters()))


def test_bfloat16_states_are_near_and_float16_is_kept_in_float32(model, tokenizer, rows):
    exact = CachedTeacher(model, tokenizer, rows)(range(6))
    kept = CachedTeacher(model, tokenizer, rows, dtype="bfloat16")(range(6))
    assert torch.equal(kept, exact.bfloat16())
    low = CachedTeacher(tiny_causal("gpt2", len(tokenizer)).bfloat16(), tokenizer, rows)
    assert low(range(6)).dtype is torch.bfloat16
    half = CachedTeacher(tiny_causal("gpt2", len(tokenizer)).half(), tokenizer, rows)
    assert half.dtype == "float32"
    assert half(range(6)).dtype is torch.float32
    with pytest.raises(DataError, match="dtype is 'int8', wanted float32 or bfloat16"):
        CachedTeacher(model, tokenizer, rows, dtype="int8")


def test_top_k_is_that_of_the_states(model, tokenizer, rows):
    head = Head(*output_head(model))
    states_ND = CachedTeacher(model, tokenizer, rows)(range(6))
    teacher = CachedTeacher(model, tokenizer, rows, top_k=7, temperature=2.0, part_positions=20)
    kept = teacher(range(6))
    assert isinstance(kept, TopK)
    wanted = top_k(states_ND, head, 7, 2.0)
    assert kept.ids_NK.dtype is torch.int32
    assert kept.ids_NK.shape == (len(states_ND), 7)
    torch.testing.assert_close(kept.log_probs_NK, wanted.log_probs_NK, **CLOSE)
    assert (kept.ids_NK == wanted.ids_NK).float().mean() > 0.99
    assert teacher.captured_mass == pytest.approx(float(wanted.mass_N.mean()), rel=1e-5)
    assert 0 < teacher.captured_mass < 1
    whole = CachedTeacher(model, tokenizer, rows, top_k=len(tokenizer))
    assert whole.captured_mass == pytest.approx(1)
    assert CachedTeacher(model, tokenizer, rows).captured_mass == 1


@pytest.mark.parametrize("name", CAUSAL_ARCHITECTURES)
def test_without_a_definition_the_teacher_says_what_the_student_says(name, tokenizer):
    sentences = [Sentence(fact, "", text, mention) for fact, text, mention in TEXTS]
    rows = make_rows(tokenizer, sentences, positions="all")
    model = tiny_causal(name, len(tokenizer))
    teacher_ND = CachedTeacher(model, tokenizer, rows)(range(5))
    packed = pack([[rows.student_ids(row).astype(np.int64) for row in rows.rows]])
    start, where = len(rows.start), []
    for row in rows.rows:
        where.append(row.scored + start)
        start += len(rows.student_ids(row))
    student_ND = states(model, packed)[0, torch.from_numpy(np.concatenate(where)).long()]
    torch.testing.assert_close(student_ND, teacher_ND, **CLOSE)
    head = Head(*output_head(model))
    weights = torch.full((len(teacher_ND),), 1 / len(teacher_ND))
    loss, _ = linear_divergence(student_ND, head, teacher_ND, head, weights, temperature=2.0)
    assert abs(loss.item()) < 1e-6
    same, _ = linear_divergence(student_ND, head, student_ND.detach(), head, weights, temperature=2.0)
    assert same.item() == 0
    same.backward()
    assert all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


def test_a_definition_matters(model, tokenizer, rows):
    without = make_rows(tokenizer, [Sentence(fact, "", text, mention) for fact, text, mention in TEXTS])
    told = live_states(model, rows.prefixes, rows.rows[:5])
    untold = live_states(model, without.prefixes, without.rows)
    assert (told - untold).abs().max() > 0.1


@pytest.mark.parametrize("number", [0, 3])
def test_states_that_are_not_finite_name_fact_and_sentence(model, tokenizer, rows, number, monkeypatch):
    real = teacher_file.live_states
    culprit = rows.rows[number]

    def poisoned(model, prefixes, chosen, tokens):
        states_ND = real(model, prefixes, chosen, tokens)
        first = 0
        for row in chosen:
            if row is culprit:
                states_ND[first, 1] = float("inf")
            first += len(row.scored)
        return states_ND

    monkeypatch.setattr(teacher_file, "live_states", poisoned)
    fact, text, _ = TEXTS[number]
    with pytest.raises(DataError) as raised:
        CachedTeacher(model, tokenizer, rows)
    assert str(raised.value).startswith(
        f"{FACTS[fact].where}: {FACTS[fact].name!r}: the teacher's states are not finite"
    )
    assert repr(text) in str(raised.value)
    assert "backbone.dtype" in str(raised.value)


def test_a_full_disk_is_told_in_a_line_and_leaves_nothing_cut(model, tokenizer, rows, monkeypatch, cache):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts_file, "sync", full)
    with pytest.raises(DataError, match=r"no space for .*000000.safetensors.* set KEDIT_CACHE"):
        CachedTeacher(model, tokenizer, rows)
    assert [path.name for path in (cache / "teacher").rglob("*") if path.is_file()] in ([], ["lock"])

    def broken(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(parts_file, "sync", broken)
    with pytest.raises(PermissionError):
        CachedTeacher(model, tokenizer, rows)


def test_a_second_run_waits_for_the_first(model, tokenizer, rows, capsys):
    folder = CachedTeacher(model, tokenizer, rows).folder
    taken = threading.Event()

    def other_run():
        with FileLock(folder / "lock"):
            taken.set()
            time.sleep(0.3)

    thread = threading.Thread(target=other_run)
    thread.start()
    taken.wait()
    CachedTeacher(model, tokenizer, rows)
    assert "another run is writing here; waiting for it" in capsys.readouterr().err
    thread.join()


def share(rank, world, folder, tokenizer, rows, answers, poison):
    """One of several processes of a run."""
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
        model = tiny_causal("gpt2", len(tokenizer))
        if rank == poison:
            torch.nn.init.constant_(model.base_model.ln_f.bias, float("nan"))
            model_file = teacher_file.model_fingerprint
            teacher_file.model_fingerprint = lambda _: model_file(tiny_causal("gpt2", len(tokenizer)))
        try:
            teacher = CachedTeacher(model, tokenizer, rows, cache=folder, part_positions=20)
            answers.put((rank, teacher.read, teacher(range(6)).numpy().tolist()))
        except DataError as error:
            answers.put((rank, -1, str(error)))
        dist.destroy_process_group()
    except BaseException as error:
        answers.put((rank, -2, repr(error)))


@pytest.mark.parametrize("poison", [None, 1])
def test_processes_share_the_reading_and_fail_together(model, tokenizer, rows, tmp_path, poison):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    folder = tmp_path / "shared"
    folder.mkdir()
    workers = [
        context.Process(target=share, args=(rank, 2, folder, tokenizer, rows, answers, poison), daemon=True)
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    found = sorted(answers.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(60)
    if poison is not None:
        assert [read for _, read, _ in found] == [-1, -1]
        assert found[0][2] == found[1][2]
        assert "are not finite" in found[0][2]
        return
    assert [rank for rank, _, _ in found] == [0, 1]
    assert all(read > 0 for _, read, _ in found), found
    assert sum(read for _, read, _ in found) == 6
    wanted = live_states(model, rows.prefixes, rows.rows)
    for _, _, said in found:
        torch.testing.assert_close(torch.tensor(said), wanted, **CLOSE)
