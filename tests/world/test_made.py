"""What all models of the made-up world have in common: they are made once, whole, and by their arguments."""

import json

import pytest
from transformers import AutoModel, AutoTokenizer

from kedit.world import (
    ReadingEncoder,
    ReadingLM,
    RealmEncoder,
    WorldLM,
    WorldSeq2Seq,
    base_lm,
    encoder,
    reading_lm,
    realm_seq2seq,
)

SMALL = {"width": 16, "layers": 1, "heads": 2, "vocabulary": 700, "steps": 4, "batch": 4}
KINDS = {
    WorldLM: {"known": 60, **SMALL}, WorldSeq2Seq: {"known": 60, **SMALL}, RealmEncoder: {"known": 60, **SMALL},
    ReadingLM: {"known": 40, **SMALL}, ReadingEncoder: {"known": 40, **SMALL},
}  # fmt: skip
MASKED = "NLL of a masked token"
TOLD = {WorldLM: "% of known facts", WorldSeq2Seq: "behind the definition", RealmEncoder: MASKED,
        ReadingLM: "of known facts", ReadingEncoder: MASKED}  # fmt: skip


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def small(request, monkeypatch, tmp_path):
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    for module in (base_lm, realm_seq2seq, encoder, reading_lm):
        monkeypatch.setattr(module, "ASKED", 10)
    return request.param(**KINDS[request.param])


def test_is_made_once_and_loads_with_the_stock_classes(small, capsys):
    folder = small.make()
    told = capsys.readouterr().out
    assert "step 4/4" in told
    assert TOLD[type(small)] in told
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    assert None not in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert model.config.vocab_size == len(tokenizer)
    assert "processor_seconds" in json.loads((folder / "quality.json").read_text())
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert small.make() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert not capsys.readouterr().out, "nothing is made a second time"


def test_a_folder_without_its_quality_is_made_again(small):
    folder = small.make()
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "quality.json").unlink()
    (folder / "model.safetensors").write_bytes(b"half")
    small.make()
    assert (folder / "model.safetensors").read_bytes() == weights, "the same arguments give the same weights"


def test_other_arguments_are_another_model(small):
    assert type(small)(**KINDS[type(small)] | {"seed": 5}).folder() != small.folder()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("arguments", "said"), [({"steps": 0}, "steps is 0"), ({"width": 35}, "heads")])
def test_impossible_arguments_are_refused(kind, arguments, said):
    with pytest.raises(ValueError, match=said):
        kind(**arguments)
