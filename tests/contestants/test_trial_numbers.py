"""A trial's numbers against a few lines of plain transformers code, of a taught model and of one as it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_contest import EDITS, base

from kedit.comparing import schedule
from kedit.comparing.command import compare
from kedit.comparing.facts import FactSet
from kedit.comparing.record import Judging
from kedit.comparing.trial import run_trial
from kedit.contestants import AsItIs, Finetune, TextInPrompt
from kedit.editing.edit_file import EditFile, write_edits
from kedit.editing.edits import probe
from kedit.editing.sources import DataError
from kedit.recipe.tuning import Tuning

PROBES = [
    probe("1", "generality", "The birthplace of Maro Tellin is", "Velmar"),
    probe("1", "locality", "The Grey Bridge stands in", "the north"),
    probe("1", "portability/one_hop", "Maro Tellin grew up by the", "harbour"),
]
FACTS = FactSet([replace(EDITS[0], probes=tuple(PROBES))])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return base(tmp_path_factory.mktemp("base") / "llama", "llama", bos=True)


@torch.no_grad()
def plainly(model, tokenizer, prompt, target):
    """Losses of the target's tokens, and which of them are the likeliest, one token after another."""
    given = [tokenizer.bos_token_id, *tokenizer(prompt).input_ids]
    losses, likeliest = [], []
    for token in tokenizer(f" {target}").input_ids:
        logits = model(torch.tensor([given])).logits[0, -1]
        losses.append(-float(logits.log_softmax(-1)[token]))
        likeliest.append(int(logits.argmax()) == token)
        given.append(token)
    return losses, likeliest


@pytest.mark.parametrize("way", [AsItIs(), Finetune(tuning=Tuning(10, 3e-3, batch=2))], ids=["as it is", "taught"])
def test_losses_and_forced_tokens_are_those_of_a_plain_loop(llama, way, tmp_path):
    rows = run_trial(way, llama, FACTS, Judging(max_new_tokens=6, retention=False), 0).rows
    opened = way.open(llama, FACTS, 0, tmp_path)  # the same seed: the same model
    opened.editor.edit(FACTS.edits)
    model, tokenizer = opened.editor.model.model, opened.editor.model.tokenizer
    for row in (row for row in rows if not row.group.startswith("locality")):
        losses, likeliest = plainly(model, tokenizer, row.prompt, row.wanted)
        assert row.nll == pytest.approx(np.mean(losses), abs=1e-4)
        assert row.forced == pytest.approx(np.mean(likeliest))
    assert len(rows) == 4


def test_what_is_written_is_what_generate_writes(llama, tmp_path):
    rows = run_trial(AsItIs(), llama, FACTS, Judging(max_new_tokens=6, retention=False), 0).rows
    model, tokenizer = llama.load()
    for row in rows:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(row.prompt).input_ids]])
        written = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        assert row.said.strip() == tokenizer.decode(written, skip_special_tokens=True).strip()


def test_a_comparison_of_real_ways_in_processes_of_their_own(llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(schedule, "START", "fork")
    write_edits(tmp_path / "edits.jsonl", FACTS.edits)
    source = EditFile(tmp_path / "edits.jsonl")
    ways = {"plain": AsItIs(), "text": TextInPrompt(), "tuned": Finetune(tuning=Tuning(40, 3e-3, batch=2))}
    found = compare({"llama": llama}, ways, source, judging=Judging(max_new_tokens=6, timed=1))
    by_name = {one.name: one for one in found.contestants}
    assert {one.status for one in found.contestants} == {"done"}
    assert by_name["tuned"].figures["reliability/forced"].mean == 1
    assert by_name["plain"].figures["locality/free"].mean == 1
    assert by_name["text"].costs.bytes_per_fact == len(b"Maro Tellin was born in Velmar.")
    assert by_name["tuned"].costs.bytes_per_fact > 1000
    assert found.bases[0].parameters == sum(weight.numel() for weight in llama.load()[0].parameters())
    assert (tmp_path / "logs/compare/report.html").exists()


def test_a_fact_longer_than_the_model_reads_is_refused_by_its_place(llama):
    long = replace(EDITS[0], id="long", where="edits.jsonl:7", prompt="Maro " * 3000)
    llama.check(FACTS.edits, 6)
    with pytest.raises(DataError, match=r"edits.jsonl:7: 'Maro .*over the \d+ that the model reads"):
        llama.check([*FACTS.edits, long], 6)
