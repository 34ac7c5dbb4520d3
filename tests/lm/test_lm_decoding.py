import numpy as np
import pytest
import torch
from conftest import tiny_model

from kedit.lm.decoding import greedy
from kedit.lm.packing import PackedRows, encode, lay_out


def states_of(model, sources):
    ids, document, position = lay_out([[s] for s in sources], 1)
    return encode(model, PackedRows(ids, document, position, ids, document, position, document)), document >= 0


@pytest.mark.parametrize("name", ["bart", "t5", "t5-v1.1"])
def test_a_batch_decodes_as_generate_does_row_by_row(name):
    model = tiny_model(name).eval()
    # a random model repeats itself: sharpen it, so that the answers differ
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    random = np.random.default_rng(0)
    sources = [random.integers(5, 100, n) for n in (9, 4, 14)]
    lengths = (3, 7, 5) if name == "bart" else (2, 2, 2)
    # generate puts the start token before a prompt that lacks it
    prefixes = [np.concatenate([[model.config.decoder_start_token_id], random.integers(5, 100, n)]) for n in lengths]
    states, real = states_of(model, sources)
    ours = greedy(model, states, real, prefixes, stop={2}, most=12)
    for source, prefix, answer in zip(sources, prefixes, ours, strict=True):
        expected = model.generate(
            torch.tensor(source)[None], decoder_input_ids=torch.tensor(prefix)[None], max_new_tokens=12, min_length=0,
            num_beams=1, do_sample=False, eos_token_id=2, forced_eos_token_id=None, forced_bos_token_id=None,
        )[0, len(prefix):].tolist()  # fmt: skip
        assert answer == expected[: expected.index(2) if 2 in expected else None]
    assert len({tuple(answer) for answer in ours}) > 1


def test_t5_refuses_prefixes_of_different_lengths():
    model = tiny_model("t5").eval()
    states, real = states_of(model, [np.arange(5, 9)] * 2)
    with pytest.raises(ValueError, match="one length"):
        greedy(model, states, real, [np.array([0]), np.array([0, 5])], {1}, 3)
