from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TEXTS
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from kedit.benchmarks import Ecbd
from kedit.editing.probes import Fact, Probe
from kedit.editing.scores import Choices, choices, nameless_left, probe_nll, span_score
from kedit.editing.sources import DataError
from kedit.lm import scoring
from kedit.lm.backbones import load_tokenizer
from kedit.lm.scoring import Span, candidate_log_probs, span_nll
from kedit.lm.text import decode, encode
from kedit.lm.tokenizers import train_tokenizer

SMALL = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 128}
GROUPED = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 1}
CAUSAL = {
    "gpt2": {"n_embd": 32, "n_head": 2, "n_layer": 2, "n_positions": 128},
    "gpt_neo": {**SMALL, "num_heads": 2, "num_layers": 2, "attention_types": [[["global", "local"], 1]],
                "window_size": 6},
    "gptj": {"n_embd": 32, "n_head": 2, "n_layer": 2, "n_positions": 128, "rotary_dim": 8},
    "gpt_neox": {**SMALL, "intermediate_size": 48},
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 16},
}  # fmt: skip
CAUSAL["gpt_neo"].pop("num_attention_heads")
CAUSAL["gpt_neo"].pop("num_hidden_layers")
ALL = [*CAUSAL, "t5"]

DEFINITION = "Maro Tellin is a painter of Velmar, known for the Grey Bridge."
SPANS = [
    Span("Velmar is ", "a harbour town", "; its bridge is old."),
    Span("", "Tellin", " is a heron that lives in the marshes of the north."),
    Span("The painter Maro Tellin was born in ", "Velmar", ""),
    Span("It's the naïve (", "Grey Bridge", ") of 東京, they say."),
    Span("The bridge in 東", "京", " was built in 1893."),
    Span("The marshes of the north of which the company of Tellin painted the ", "Grey Bridge in 1851", " are old."),
]
CONTEXTS = [None, DEFINITION, DEFINITION, None, "Tellin.", DEFINITION]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 400, sentinels=3)


@pytest.fixture(scope="module")
def model_of(tokenizer):
    made = {}

    def make(name):
        if name not in made:
            torch.manual_seed(0)
            options = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
            if name == "t5":
                sizes = {"d_model": 32, "d_kv": 16, "num_heads": 2, "num_layers": 2, "d_ff": 64}
                config = AutoConfig.for_model("t5", **options, **sizes, decoder_start_token_id=1)
                model = AutoModelForSeq2SeqLM.from_config(config)
            else:
                model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **options, **CAUSAL[name]))
            for parameter in model.parameters():  # far from uniform, so that a wrong token shows
                if parameter.ndim > 1 and name != "t5":
                    parameter.data.mul_(4)
            made[name] = model.eval()
        return made[name]

    return make


def naive(model, tokenizer, span, context=None):
    """One sentence by the model's own forward pass: token losses of the span."""
    ids, offsets = encode(tokenizer, [span.left + span.span + span.right], leading_space=True)[0]
    start, stop = len(span.left), len(span.left + span.span)
    chosen = [at for at, (low, high) in enumerate(offsets) if high > start and low < stop]
    head = [] if context is None else encode(tokenizer, [context])[0].ids.tolist()
    ids = ids.tolist()
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            gap = tokenizer.convert_tokens_to_ids("<extra_id_0>")
            source = [*head, *ids[: chosen[0]], gap, *ids[chosen[-1] + 1 :], tokenizer.eos_token_id]
            target = [gap, *ids[chosen[0] : chosen[-1] + 1], tokenizer.convert_tokens_to_ids("<extra_id_1>")]
            logits = model(input_ids=torch.tensor([source]), labels=torch.tensor([target])).logits[0]
            return -logits.log_softmax(-1)[range(len(target)), target][1:-1].numpy()
        given = [tokenizer.bos_token_id, *head]
        log_probs = model(torch.tensor([given + ids])).logits[0].log_softmax(-1)
        return -log_probs[[len(given) + at - 1 for at in chosen], [ids[at] for at in chosen]].numpy()


@pytest.mark.parametrize("name", ALL)
def test_spans_are_scored_as_one_by_one(name, model_of, tokenizer):
    model = model_of(name)
    together = span_nll(model, tokenizer, SPANS, CONTEXTS)
    for span, context, losses in zip(SPANS, CONTEXTS, together, strict=True):
        alone = span_nll(model, tokenizer, [span], [context])[0]
        assert losses.dtype == np.float32
        assert np.allclose(losses, alone, atol=1e-5, rtol=0)
        assert np.allclose(losses, naive(model, tokenizer, span, context), atol=2e-5)
    assert max(map(len, together)) > 2


@pytest.mark.parametrize("name", ALL)
def test_candidates_are_each_read_with_their_own_tokens(name, model_of, tokenizer):
    model = model_of(name)
    spans = [SPANS[0], SPANS[3], SPANS[2]]
    words = [["a town", "old", "Velmar in the marshes"], ["bridge", "東京 heron"], ["Velmar"]]
    ours = candidate_log_probs(model, tokenizer, spans, words, [DEFINITION, None, "Tellin."])
    for span, context, candidates, scores in zip(spans, [DEFINITION, None, "Tellin."], words, ours, strict=True):
        filled = [replace(span, span=word) for word in candidates]
        assert np.allclose(scores, [-naive(model, tokenizer, each, context).sum() for each in filled], atol=5e-5)
    assert [len(scores) for scores in ours] == [3, 2, 1]


@pytest.mark.parametrize("name", ["gpt_neo", "llama", "t5"])
def test_any_size_of_batch_gives_the_same(name, model_of, tokenizer, monkeypatch):
    model = model_of(name)
    spans, contexts = SPANS * 5, CONTEXTS * 5
    large = span_nll(model, tokenizer, spans, contexts)
    monkeypatch.setattr(scoring, "HEAD_TOKENS", 7)
    calls = []
    small = span_nll(model, tokenizer, spans, contexts, batch_tokens=150, progress=lambda *at: calls.append(at))
    assert max(abs(one - other).max() for one, other in zip(large, small, strict=True)) < 1e-5
    assert calls[-1] == (30, 30)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_a_definition_leaves_the_sentence_as_it_is(model_of, tokenizer):
    """The same tokens are scored with and without it, and an empty one changes nothing at all."""
    model = model_of("gpt2")
    plain, told, empty = (span_nll(model, tokenizer, SPANS, [text] * len(SPANS)) for text in (None, DEFINITION, ""))
    assert [len(losses) for losses in plain] == [len(losses) for losses in told]
    assert not any(np.allclose(one, other, atol=1e-2) for one, other in zip(plain, told, strict=True))
    assert all(np.allclose(one, other, atol=1e-5) for one, other in zip(plain, empty, strict=True))


def tokens_of(tokenizer, span):
    (row,) = scoring._rows(tokenizer, [span], [None], sequence_to_sequence=False)
    return tokenizer.convert_ids_to_tokens(row.targets.tolist())


BOUNDARIES = [
    (Span("The Great is very ", "funny", "."), ["Ġfunny"], ["▁fun", "ny"]),
    (Span("It began in (", "early March", "), they say."), ["early", "ĠMarch"], ["ear", "ly", "▁March"]),
    (Span("", "Qubo", " was a channel."), ["ĠQ", "ub", "o"], ["▁Q", "ub", "o"]),
    (Span("It stood for ", "the Old Book", ""), ["Ġthe", "ĠOld", "ĠBook"], ["▁the", "▁Old", "▁Book"]),
    (Span("They met in ", "東京", ", again."), ["Ġæ", "Ŀ", "±", "äº", "¬"], ["東", "京"]),
    (Span("It took over", ", with", " care."), [",", "Ġwith"], [",", "▁with"]),
    (Span("It ran until 6:00", "\xa0a.m.", " Eastern."), ["Âł", "a", ".", "m", "."], ["\xa0", "a", ".", "m", "."]),
    (Span("The over-", "the-air", " stations"), ["the", "-", "air"], ["the", "-", "air"]),
    (Span("The show's ", "end's", " here"), ["Ġend", "'s"], ["▁end", "'", "s"]),
]


@pytest.mark.parametrize("family", ["gpt2", "llama2"])
def test_span_boundaries(family, real_data):
    tokenizer = load_tokenizer(real_data / "tokenizers" / family)
    for span, *expected in BOUNDARIES:
        assert tokens_of(tokenizer, span) == expected[family == "llama2"], span


@pytest.mark.parametrize("family", ["gpt2", "llama2"])
def test_tokens_are_the_span_in_all_but_two_real_probes(family, real_data):
    tokenizer = load_tokenizer(real_data / "tokenizers" / family)
    probes = Ecbd(real_data / "ecbd" / "ecbd_2023_augmented.json").load().probes
    spans = [Span(probe.left, probe.span, probe.right) for probe in probes]
    rows = scoring._rows(tokenizer, spans, [None] * len(spans), sequence_to_sequence=False)
    texts = [decode(tokenizer, row.targets).strip() for row in rows]
    longer = [text for span, text in zip(spans, texts, strict=True) if text != span.span.strip()]
    assert longer == ['"building block for kids,"', "relays and marathon)."]  # its last mark is joined with the next
    if family == "gpt2":
        assert np.mean([len(row.targets) for row in rows]) == pytest.approx(3.42, abs=0.005)


def test_span_boundaries_of_a_tokenizer_made_here(tokenizer):
    assert "".join(tokens_of(tokenizer, SPANS[0])).replace("Ġ", " ") == " a harbour town"
    assert "".join(tokens_of(tokenizer, SPANS[1])).replace("Ġ", " ") == " Tellin"
    assert "".join(tokens_of(tokenizer, SPANS[3])).replace("Ġ", " ") == "Grey Bridge"
    assert len(tokens_of(tokenizer, SPANS[4])) == len("京".encode())


@pytest.mark.parametrize(("span", "message"), [
    (Span("A ", "", " b", where="f:3"), "f:3: the span '' has no tokens"),
    (Span("a " * 200, "Velmar", where="f:4"), "f:4: 2.. tokens with what stands before it, and the model reads 128"),
])  # fmt: skip
def test_what_cannot_be_scored_is_named(span, message, model_of, tokenizer):
    with pytest.raises(ValueError, match=message):
        span_nll(model_of("gpt2"), tokenizer, [SPANS[0], span])


def test_without_bos_the_first_token_has_no_likelihood(model_of):
    tokenizer = train_tokenizer(TEXTS, 400, sentinels=3)
    tokenizer.bos_token = None
    with pytest.raises(ValueError, match=r"'Tellin is .*no BOS"):
        span_nll(model_of("qwen2"), tokenizer, SPANS)
    with pytest.raises(DataError, match=r"probe 'p': .*no BOS"):
        probe_nll(model_of("qwen2"), tokenizer, [Probe("p", "", "", "Tellin")])
    told = span_nll(model_of("qwen2"), tokenizer, SPANS, [DEFINITION] * len(SPANS))
    assert all(np.isfinite(losses).all() for losses in told)


def test_an_encoder_decoder_wants_sentinels(model_of):
    with pytest.raises(ValueError, match="no <extra_id_0>"):
        span_nll(model_of("t5"), train_tokenizer(TEXTS, 400), SPANS)


def test_nothing_to_score(model_of, tokenizer):
    assert span_nll(model_of("gpt2"), tokenizer, []) == []
    assert candidate_log_probs(model_of("gpt2"), tokenizer, [SPANS[0]], [[]])[0].shape == (0,)


FACTS = {"m": Fact("m", "Maro Tellin", DEFINITION, ("Tellin",)), "v": Fact("v", "Velmar", "Velmar is a town.")}
PROBES = [
    Probe("1", "m", "Maro Tellin painted the ", "bridge", ".", ("bridge", "town", "marshes of the north")),
    Probe("2", "v", "The bridge of Velmar is ", "old", "; so is Velmar.", ("new", "old")),
]


def test_probes_have_mean_losses(model_of, tokenizer):
    model = model_of("gpt2")
    contexts = [DEFINITION, None]
    expected = [
        naive(model, tokenizer, Span(probe.left, probe.span, probe.right), text).mean()
        for probe, text in zip(PROBES, contexts, strict=True)
    ]
    assert probe_nll(model, tokenizer, PROBES, {"m": DEFINITION}) == pytest.approx(expected, abs=1e-5)


def test_the_reference_mean_and_the_one_over_entities():
    score = span_score(np.log([2.0, 2.0, 2.0, 16.0]), ["qubo", "qubo", "qubo", "tour"])
    assert score.nll == pytest.approx(7 / 4 * np.log(2))
    assert score.perplexity == pytest.approx(2 ** (7 / 4))
    assert score.nll_by_entity == pytest.approx(5 / 2 * np.log(2))
    assert score.perplexity_by_entity == pytest.approx(2 ** (5 / 2))


def test_choices_raw_and_calibrated(model_of, tokenizer):
    model = model_of("llama")
    found = choices(model, tokenizer, PROBES, FACTS, {"m": DEFINITION})
    assert found.gold.tolist() == [0, 1]
    for number, (left, context) in enumerate([("It painted the ", DEFINITION), ("The bridge of it is ", None)]):
        probe = PROBES[number]
        filled = [Span(probe.left, word, probe.right) for word in probe.candidates]
        raw = [-naive(model, tokenizer, span, context).sum() for span in filled]
        prior = [-naive(model, tokenizer, replace(span, left=left)).sum() for span in filled]
        assert np.allclose(found.log_probs[number], raw, atol=5e-5)
        assert np.allclose(found.priors[number], prior, atol=5e-5)
        gold = found.gold[number]
        assert found.right()[number] == (int(np.argmax(raw)) == gold)
        assert found.right(calibrated=True)[number] == (int(np.argmax(np.subtract(raw, prior))) == gold)


def test_a_tie_is_no_choice():
    found = scored([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [2.0, 0.0], [0.0, 1.0]], [0, 0, 0])
    assert found.right().tolist() == [0, 1, 0]
    assert found.right(calibrated=True).tolist() == [1, 0, 0]


def scored(raw, priors, gold):
    return Choices([np.array(row) for row in raw], [np.array(row) for row in priors], np.array(gold))


def test_every_mention_gives_way_and_longer_names_first():
    probe = Probe("p", "m", "Maro Tellin, whom Tellin's friends called Tellinson, is ", "old")
    assert nameless_left(probe, FACTS) == "It, whom it's friends called Tellinson, is "


def test_choices_name_what_is_wrong(model_of, tokenizer):
    model = model_of("gpt2")
    for probe, message in (
        (replace(PROBES[0], candidates=()), "probe '1': 'bridge' is none of its 0 candidates"),
        (replace(PROBES[0], fact="x", where="f:9"), "f:9, probe '1': asks about the fact 'x'"),
        (replace(PROBES[0], fact="v"), "none of the names 'Velmar' stands in 'Maro Tellin painted the '"),
        (replace(PROBES[0], candidates=("bridge", "")), "candidate '': the span '' has no tokens"),
    ):
        with pytest.raises(DataError, match=message):
            choices(model, tokenizer, [probe], FACTS)
