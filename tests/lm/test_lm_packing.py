import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, tiny_model

from kedit.lm.backbones import output_head
from kedit.lm.packing import PackedRows, decode, encode, lay_out, row_limit


def documents(random, shapes):
    return [(random.integers(5, 100, s), random.integers(5, 100, t)) for s, t in shapes]


def pack(rows):
    source, source_document, source_position = lay_out([[d[0] for d in row] for row in rows], 1)
    target, document, position = lay_out([[d[1] for d in row] for row in rows], 1)
    return PackedRows(source, source_document, source_position, target, document, position, document)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_losses_and_gradients_equal_each_document_alone(name, attention):
    model = tiny_model(name).eval()
    model.set_attn_implementation(attention)
    docs = documents(np.random.default_rng(0), [(7, 9), (5, 4), (11, 12), (3, 20)])
    rows = pack([[docs[0], docs[1]], [docs[2]], [docs[3]]])
    weight, bias = output_head(model)
    labels = [torch.from_numpy(np.roll(d[1], -1)) for d in docs]

    logits = decode(model, encode(model, rows), rows) @ weight.T + (0 if bias is None else bias)
    places = [(0, 0), (0, 1), (1, 0), (2, 0)]
    packed = sum(
        torch.nn.functional.cross_entropy(logits[row][rows.document_BT[row] == number], label)
        for (row, number), label in zip(places, labels, strict=True)
    )
    packed.backward()
    packed_gradients = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    alone = sum(
        torch.nn.functional.cross_entropy(
            model(input_ids=torch.tensor(s)[None], decoder_input_ids=torch.tensor(t)[None]).logits[0], label
        )
        for (s, t), label in zip(docs, labels, strict=True)
    )
    alone.backward()
    assert torch.allclose(packed, alone, atol=1e-5)
    assert packed_gradients
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(packed_gradients[key], parameter.grad, atol=1e-5, rtol=1e-4), key


def test_branches_share_a_prefix_as_if_each_continued_it_alone():
    model = tiny_model("bart").eval()
    random = np.random.default_rng(0)
    source, prefix = random.integers(5, 100, 8), random.integers(5, 100, 6)
    options = [random.integers(5, 100, n) for n in (3, 5)]
    ids, document, _ = lay_out([[np.concatenate([prefix, *options])]], 1)
    position = lay_out([[np.concatenate([np.arange(6), 6 + np.arange(3), 6 + np.arange(5)])]], 0)[0]
    branch = lay_out([[np.repeat([0, 1, 2], [6, 3, 5])]], 0)[0]
    rows = PackedRows(*lay_out([[source]], 1), ids, document, position, document, branch)
    with torch.no_grad():
        hidden = decode(model, encode(model, rows), rows)[0]
        for option, start in zip(options, (6, 9), strict=True):
            alone = pack([[(source, np.concatenate([prefix, option]))]])
            expected = decode(model, encode(model, alone), alone)[0, 6:]
            assert torch.allclose(hidden[start : start + len(option)], expected, atol=1e-5)


def test_layout_pads_on_the_right():
    ids, document, position = lay_out([[np.array([5, 6]), np.array([7])], [np.array([8])]], pad=1, width=4)
    assert ids.tolist() == [[5, 6, 7, 1], [8, 1, 1, 1]]
    assert document.tolist() == [[0, 0, 1, -1], [0, -1, -1, -1]]
    assert position.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]


def test_only_bart_limits_a_row():
    assert row_limit(tiny_model("bart")) == 256
    assert row_limit(tiny_model("t5")) is None
