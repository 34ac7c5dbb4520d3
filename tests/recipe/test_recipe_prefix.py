"""Prompt vectors before a frozen language model: exactly the model on [vectors; embeddings], in every architecture."""

import warnings

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from conftest import CAUSAL_ARCHITECTURES, TEXTS, tiny_causal, tiny_model
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import AutoTokenizer

from kedit.editing.sources import DataError
from kedit.lm.backbones import CAUSAL, output_head
from kedit.lm.scoring import Span, span_nll
from kedit.lm.tokenizers import train_tokenizer
from kedit.recipe.prefix import PrefixedModel, Rows, ends_at
from kedit.recipe.stopping import Stopping

NAMES = [*sorted(CAUSAL_ARCHITECTURES), "bart", "t5", "t5-v1.1"]
PROMPTS = [
    "Velmar is a",
    "The painter Maro Tellin was born in Velmar in 1851 and",
    "Tellin",
    "The bridge in the north of",
]
TARGETS = ["harbour town", "painted the Grey Bridge", "is a species of heron", "Velmar"]
NEW = 7


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300, sentinels=2)


@pytest.fixture(scope="module")
def models(tokenizer):
    """Models by architecture, as a user has them; each is made once."""
    made = {}

    def model(name):
        if name not in made:
            made[name] = fresh(name, tokenizer)
        return made[name]

    return model


def fresh(name, tokenizer, **settings):
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    if name in CAUSAL_ARCHITECTURES:
        return tiny_causal(name, len(tokenizer), **ids, **settings)
    model = tiny_model(name, len(tokenizer)).eval()
    for (
        path,
        parameter,
    ) in model.named_parameters():  # larger weights, so that a wrong mask shows, and words are written
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2 if ".layers." in path or ".block." in path else 0.15)
    if name == "bart":
        model.final_logits_bias.normal_()
    for config in (model.config, model.generation_config):
        config.forced_eos_token_id = None
        config.decoder_start_token_id = config.decoder_start_token_id or 0
        for key, value in ids.items():
            setattr(config, key, value)
    return model


def drawn(model, rows=4, tokens=3, seed=0):
    """Vectors as large as embeddings."""
    scale = model.get_input_embeddings().weight.std()
    return torch.randn(rows, tokens, model.get_input_embeddings().embedding_dim,
                       generator=torch.Generator().manual_seed(seed)) * scale  # fmt: skip


def by_hand(model, ids, vectors, decoder=None):
    """Logits of the stock model on one row, without padding, mask and cache: [L, V], or of its decoder."""
    embeddings = model.get_input_embeddings()(torch.tensor([ids]))
    if vectors is not None:
        embeddings = torch.cat([vectors[None].to(embeddings.dtype), embeddings], 1)
    if decoder is None:
        return model(inputs_embeds=embeddings, use_cache=False).logits[0]
    return model(inputs_embeds=embeddings, decoder_input_ids=torch.tensor([decoder]), use_cache=False).logits[0]


@torch.no_grad()
def greedy_by_hand(model, ids, vectors, most=NEW):
    """Tokens, likeliest first, each from a pass over all that stands before it."""
    written = []
    start = [model.config.decoder_start_token_id] if model.config.is_encoder_decoder else None
    while len(written) < most and written[-1:] != [model.generation_config.eos_token_id]:
        logits = (
            by_hand(model, ids + written, vectors) if start is None else by_hand(model, ids, vectors, start + written)
        )
        written.append(int(logits[-1].argmax()))
    return written


def test_every_decoder_only_architecture_is_tested():
    assert set(CAUSAL) <= set(NAMES)


# what is written ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_each_row_of_a_mixed_batch_is_written_as_if_alone_and_without_a_cache(name, models, tokenizer):
    model = models(name)
    prefixed = PrefixedModel(model, tokenizer)
    vectors = [None if row % 2 else own for row, own in enumerate(drawn(model))]
    ids = prefixed.asking.prompt_ids(PROMPTS)
    assert len({len(row) for row in ids}) > 1  # there is padding
    inputs = prefixed.generation_inputs(ids, vectors)
    out = model.generate(
        **inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    start = 1 if prefixed.is_seq2seq else inputs["input_ids"].shape[1]
    for row in range(4):
        expected = greedy_by_hand(model, ids[row], vectors[row])
        assert out.sequences[row, start:].tolist()[: len(expected)] == expected
        if vectors[row] is None:  # the bare model's own logits
            bare = model.generate(torch.tensor([ids[row]]), attention_mask=torch.ones(1, len(ids[row])).long(),
                                  max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True,
                                  output_logits=True)  # fmt: skip
            for mine, theirs in zip(out.logits, bare.logits, strict=False):
                torch.testing.assert_close(mine[row], theirs[0], atol=1e-5, rtol=1e-5)
    texts = prefixed.generate(PROMPTS, vectors, max_new_tokens=NEW)
    for row in range(4):
        told = greedy_by_hand(model, ids[row], vectors[row])
        assert texts[row] == tokenizer.decode(told, skip_special_tokens=True)
    assert texts != prefixed.generate(PROMPTS, max_new_tokens=NEW)  # the vectors are seen to matter


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "top_p": 0.9, "temperature": 1.3}],
                         ids=["greedy", "beam", "sample"])  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
def test_without_vectors_it_is_the_bare_models_own_generate(name, options, models, tokenizer, monkeypatch):
    model = models(name)
    prefixed = PrefixedModel(model, tokenizer)
    side = "right" if prefixed.is_seq2seq else "left"
    read = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side=side, return_token_type_ids=False)
    options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True, **options}
    torch.manual_seed(5)
    bare = model.generate(**read, max_new_tokens=NEW, **options)
    new = bare.sequences[:, 1 if prefixed.is_seq2seq else read["input_ids"].shape[1] :]
    given, generate = {}, model.generate
    monkeypatch.setattr(model, "generate", lambda **all: given.update(all) or generate(**all))
    options = {key: value for key, value in options.items() if not key.startswith(("output", "return"))}
    texts = prefixed.generate(PROMPTS, [None] * 4, max_new_tokens=NEW, seed=5, **options)
    assert texts == tokenizer.batch_decode(new, skip_special_tokens=True)
    # the same call, so the same bits
    own = {"max_new_tokens", "stopping_criteria", "num_beams"}
    assert set(given) == {"input_ids", "attention_mask", *own, *options}
    assert not given["stopping_criteria"]
    for key, value in read.items():
        assert torch.equal(given[key], value)
    torch.manual_seed(5)
    again = generate(**given, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(again.sequences, bare.sequences)
    assert all(torch.equal(*pair) for pair in zip(again.logits, bare.logits, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_beams_and_small_batches_write_the_same(name, models, tokenizer):
    model = models(name)
    prefixed = PrefixedModel(model, tokenizer)
    vectors = [None if row == 1 else own for row, own in enumerate(drawn(model))]
    told = []
    for options in ({}, {"num_beams": 3}):
        together = prefixed.generate(PROMPTS, vectors, max_new_tokens=NEW, **options)
        alone = prefixed.generate(PROMPTS, vectors, max_new_tokens=NEW, batch_tokens=1, progress=told.append, **options)
        assert together == alone
        order = [2, 0, 3, 1]
        shuffled = prefixed.generate([PROMPTS[row] for row in order], [vectors[row] for row in order],
                                     max_new_tokens=NEW, batch_tokens=80, **options)  # fmt: skip
        assert shuffled == [together[row] for row in order]
    assert told == [1] * 8


def test_beams_are_those_of_the_model_on_embeddings_alone(models, tokenizer):
    model = models("llama")
    vectors = drawn(model)
    prefixed = PrefixedModel(model, tokenizer)
    texts = prefixed.generate(PROMPTS, list(vectors), max_new_tokens=NEW, num_beams=4)
    for row, ids in enumerate(prefixed.asking.prompt_ids(PROMPTS)):
        embeddings = torch.cat([vectors[row], model.get_input_embeddings()(torch.tensor(ids))])[None]
        told = model.generate(inputs_embeds=embeddings, max_new_tokens=NEW, num_beams=4, do_sample=False)
        assert texts[row] == tokenizer.decode(told[0], skip_special_tokens=True)


def test_samples_hang_on_the_seed_alone_and_touch_no_random_state(models, tokenizer):
    prefixed = PrefixedModel(models("gpt2"), tokenizer)
    vectors = [*drawn(prefixed.model)[:3], None]
    before = torch.get_rng_state()
    options = {"max_new_tokens": NEW, "do_sample": True}
    first, again, other = (prefixed.generate(PROMPTS, vectors, seed=seed, **options) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)
    assert prefixed.generate(PROMPTS, vectors, top_k=1, **options) == prefixed.generate(
        PROMPTS, vectors, max_new_tokens=NEW
    )


def test_a_repetition_penalty_knows_the_prompt_and_no_padding(models, tokenizer):
    model = models("qwen2")
    prefixed = PrefixedModel(model, tokenizer)
    vectors = [None, drawn(model)[0], None, drawn(model)[1]]
    ids = prefixed.asking.prompt_ids(PROMPTS)
    for read, own in zip(prefixed.generation_inputs(ids, vectors)["input_ids"], ids, strict=True):
        assert set(read.tolist()) == set(own)
    together = prefixed.generate(PROMPTS, vectors, max_new_tokens=NEW, repetition_penalty=3.0)
    for row in (0, 2):
        assert together[row] == prefixed.generate([PROMPTS[row]], max_new_tokens=NEW, repetition_penalty=3.0)[0]
    assert together != prefixed.generate(PROMPTS, vectors, max_new_tokens=NEW)


def test_a_sliding_window_counts_vectors_and_no_padding(tokenizer):
    model = fresh("mistral", tokenizer, sliding_window=8)
    prefixed = PrefixedModel(model, tokenizer)
    vectors = [None if row == 1 else own for row, own in enumerate(drawn(model))]
    texts = prefixed.generate(PROMPTS, vectors, max_new_tokens=12)
    for row, ids in enumerate(prefixed.asking.prompt_ids(PROMPTS)):
        told = greedy_by_hand(model, ids, vectors[row], 12)
        assert texts[row] == tokenizer.decode(told, skip_special_tokens=True)


def test_bart_writes_without_a_cache_too(models, tokenizer):
    prefixed = PrefixedModel(models("bart"), tokenizer)
    vectors = list(drawn(prefixed.model))
    cached = prefixed.generate(PROMPTS, vectors, max_new_tokens=NEW)
    assert prefixed.generate(PROMPTS, vectors, max_new_tokens=NEW, use_cache=False) == cached


@pytest.mark.parametrize("name", ["gpt_neo", "t5"])
@pytest.mark.parametrize("beams", [1, 2])
def test_a_short_answer_ends_early(name, beams, models, tokenizer, monkeypatch):
    model = models(name)
    prefixed = PrefixedModel(model, tokenizer)
    vectors = [drawn(model)[0], None, drawn(model)[1], None]
    if beams == 1:
        whole = prefixed.generate(PROMPTS, vectors, max_new_tokens=40)
        mark = max(set(whole[0].strip()), key=whole[0].count)
        steps = count_calls(model, monkeypatch)
        assert prefixed.generate(PROMPTS, vectors, max_new_tokens=40, stop=[mark, "\n"]) == [
            text[: ends_at(mark, "\n")(text)] for text in whole
        ]
        steps.clear()
        short = prefixed.generate(PROMPTS, vectors, max_new_tokens=40, stop=lambda text: 2 if len(text) > 4 else None)
        assert short == [text[:2] for text in whole]
        assert len(steps) < 20
    else:
        steps = count_calls(model, monkeypatch)
        short = prefixed.generate(
            PROMPTS, vectors, max_new_tokens=40, num_beams=2, stop=lambda text: 2 if len(text) > 4 else None
        )
        assert [len(text) for text in short] == [2] * 4
        assert len(steps) < 20


def count_calls(model, monkeypatch):
    calls, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda *given, **named: calls.append(1) or forward(*given, **named))
    return calls


def test_every_beam_is_told_its_row():
    told = []
    ends = Stopping(lambda row, ids: told.append((row, ids)) or ids == [4], rows=2, start=1, every=1)
    assert ends(torch.tensor([[0, 3], [0, 4], [0, 5], [0, 4]]), None).tolist() == [False, True, False, True]
    assert told == [(0, [3]), (0, [4]), (1, [5]), (1, [4])]


def test_marks_of_an_end():
    stop = ends_at("\n", ".")
    assert stop("Velmar") is None
    assert stop("Velmar. It\n") == 6


# what is read ---------------------------------------------------------------------------------------------------------


def targets_by_hand(prefixed, row, vectors):
    """Logits that predict the row's target, and its ids."""
    asked = prefixed.asking.read([PROMPTS[row]], [TARGETS[row]])[0]
    decoder = list(asked.decoder) if prefixed.is_seq2seq else None
    logits = by_hand(prefixed.model, list(asked.ids), vectors, decoder)
    return logits[-len(asked.targets) :], torch.from_numpy(asked.targets)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("edited", [[True] * 4, [False, True, True, False], [False] * 4], ids=["all", "some", "none"])
def test_target_states_and_gradients_are_those_of_each_row_alone(name, edited, models, tokenizer):
    model = models(name)
    prefixed = PrefixedModel(model, tokenizer)
    prompts = drawn(model).requires_grad_()
    rows = prefixed.asking.rows(PROMPTS, TARGETS)
    assert isinstance(rows, Rows)
    assert len(rows) == 4
    states = prefixed.target_states(rows, prompts if any(edited) else None, torch.tensor(edited))
    weight, bias = prefixed.head()
    logits = states @ weight.T + (0 if bias is None else bias)
    torch.testing.assert_close(logits, prefixed.logits(states))
    expected = [targets_by_hand(prefixed, row, prompts[row] if edited[row] else None) for row in range(4)]
    torch.testing.assert_close(logits, torch.cat([one for one, _ in expected]), atol=1e-5, rtol=1e-5)
    assert rows.target_n.tolist() == torch.cat([ids for _, ids in expected]).tolist()
    assert rows.row_n.tolist() == [row for row, (_, ids) in enumerate(expected) for _ in ids]
    if any(edited):
        nll = nn.functional.cross_entropy(logits, rows.target_n, reduction="sum")
        (mine,) = torch.autograd.grad(nll, prompts)
        alone = sum(nn.functional.cross_entropy(one, ids, reduction="sum") for one, ids in expected)
        (theirs,) = torch.autograd.grad(alone, prompts)
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)
        assert all((row.abs().max() > 0) == own for row, own in zip(mine, edited, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_later_token_never_changes_an_earlier_logit(name, models, tokenizer):
    model = models(name)
    prefixed = PrefixedModel(model, tokenizer)
    prompts, edited = drawn(model), torch.tensor([True, False, True, False])
    rows = prefixed.asking.rows(PROMPTS, [f"{target} {target}" for target in TARGETS])
    with torch.no_grad():
        before = prefixed.target_states(rows, prompts, edited)
        for row in (1, 2):
            own = (rows.row_n == row).nonzero()[:, 0]
            for place in (1, 4, len(own) - 1):
                changed = rows.to("cpu")
                read = changed.decoder_RU if prefixed.is_seq2seq else changed.ids_RL
                at = int(rows.place_n[own[place]])
                read = read.clone()
                read[row, at] = 3 + (read[row, at] + 5) % 200
                setattr(changed, "decoder_RU" if prefixed.is_seq2seq else "ids_RL", read)
                after = prefixed.target_states(changed, prompts, edited)
                assert torch.equal(after[own[:place]], before[own[:place]])
                assert not torch.equal(after[own[place:]], before[own[place:]])


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_recomputes_and_changes_nothing(name, tokenizer):
    dropout = {"gpt2": {"resid_pdrop": 0.5}, "llama": {"attention_dropout": 0.5}}.get(name, {})
    model = fresh(name, tokenizer, **dropout)
    prefixed = PrefixedModel(model, tokenizer)
    rows, prompts = prefixed.asking.rows(PROMPTS, TARGETS), drawn(model).requires_grad_()
    calls: list[int] = []
    layer = next(module for module in model.modules() if type(module).__name__.endswith(("Block", "Layer")))
    part = next(
        module for module in layer.modules() if isinstance(module, nn.LayerNorm) or "Norm" in type(module).__name__
    )
    part.register_forward_pre_hook(lambda *_: calls.append(1))

    def gradient():
        calls.clear()
        prefixed.target_states(rows, prompts).square().sum().backward()
        found, prompts.grad = prompts.grad, None
        return found, len(calls)

    plain, once = gradient()
    model.gradient_checkpointing_enable()
    model.train()  # as something that holds it may do: dropout must stay off
    recomputed, twice = gradient()
    torch.testing.assert_close(recomputed, plain, atol=1e-5, rtol=1e-4)
    assert twice == 2 * once
    assert not any(module.training for module in model.modules())
    with torch.no_grad():  # and writing keeps its cache
        prefixed.generate(PROMPTS, list(prompts.detach()), max_new_tokens=2)


@pytest.mark.parametrize("name", NAMES)
def test_forced_tokens_do_not_hang_on_the_batch(name, models, tokenizer):
    model = models(name)
    prefixed = PrefixedModel(model, tokenizer)
    vectors = [None if row == 2 else own for row, own in enumerate(drawn(model))]
    together = prefixed.forced(PROMPTS, TARGETS, vectors)
    alone = prefixed.forced(PROMPTS, TARGETS, vectors, batch_tokens=1)
    for row, (one, other) in enumerate(zip(together, alone, strict=True)):
        with torch.no_grad():
            logits, ids = targets_by_hand(prefixed, row, vectors[row])
        nll = nn.functional.cross_entropy(logits, ids, reduction="none").numpy()
        np.testing.assert_allclose(one.nll, nll, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(other.nll, nll, atol=1e-5, rtol=1e-5)
        assert one.nll.dtype == np.float32
        assert one.tokens.likeliest.tolist() == other.tokens.likeliest.tolist() == logits.argmax(-1).tolist()
        assert one.tokens.target.tolist() == ids.tolist()
    assert [one.tolist() for one in prefixed.score(PROMPTS, TARGETS, vectors)] == [one.nll.tolist() for one in together]
    matches = prefixed.greedy_matches(PROMPTS, TARGETS, vectors)
    assert [one.tolist() for one in matches] == [(one.tokens[0] == one.tokens[1]).tolist() for one in together]
    assert prefixed.forced([], []) == []


def test_targets_are_tokenised_as_scoring_tokenises_spans(models):
    tokenizer = train_tokenizer(TEXTS, 300, prefix_space=True)  # the world's
    model = models("gpt2")
    prefixed = PrefixedModel(model, tokenizer, bos=True)
    spans = [Span(f"{prompt} ", target) for prompt, target in zip(PROMPTS, TARGETS, strict=True)]
    for mine, theirs in zip(prefixed.score(PROMPTS, TARGETS), span_nll(model, tokenizer, spans), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=1e-5)
    assert [ids[0] for ids in prefixed.asking.prompt_ids(PROMPTS)] == [tokenizer.bos_token_id] * 4
    # a prompt has the same tokens with and without a target
    for ids, asked in zip(prefixed.asking.prompt_ids(PROMPTS), prefixed.asking.read(PROMPTS, TARGETS), strict=True):
        assert asked.ids[: len(ids)].tolist() == ids
        assert tokenizer.decode(asked.ids[len(ids) : asked.first + 1]) in ("", " ")


def framed(**settings):
    """A tokenizer that puts <s> before a text, and with `eos` </s> behind it."""
    tokenizer = train_tokenizer(TEXTS, 300)
    single = "<s> $A </s>" if settings.get("eos") else "<s> $A"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    )
    return tokenizer


def test_special_tokens_are_those_of_the_tokenizer(models):
    tokenizer = framed()
    for bos in (False, True):  # one BOS, whoever puts it there
        asking = PrefixedModel(models("llama"), tokenizer, bos=bos).asking
        assert asking.prompt_ids(PROMPTS) == tokenizer(PROMPTS)["input_ids"]
        asked = asking.read(PROMPTS[:1], TARGETS[:1])[0]
        assert asked.ids.tolist() == tokenizer(f"{PROMPTS[0]} {TARGETS[0]}")["input_ids"][:-1]
        assert tokenizer.decode(asked.targets) == TARGETS[0]
    # an encoder-decoder reads them all, and writes BART's <s> before a target; neither <s> nor </s> is scored
    tokenizer = framed(eos=True)
    prefixed = PrefixedModel(models("bart"), tokenizer)
    asked = prefixed.asking.read(PROMPTS[:1], TARGETS[:1])[0]
    assert asked.ids.tolist() == tokenizer(PROMPTS[0])["input_ids"]
    target = tokenizer(TARGETS[0])["input_ids"]
    assert asked.targets.tolist() == target[1:-1]
    assert asked.decoder.tolist() == [models("bart").generation_config.decoder_start_token_id, *target[:-2]]
    assert asked.first == 1
    assert prefixed.asking.rows([], []).target_n.tolist() == prefixed.generate([]) == []


# the model as it comes ------------------------------------------------------------------------------------------------


def test_a_bfloat16_model_keeps_its_dtype(tokenizer):
    model = fresh("llama", tokenizer).bfloat16()
    prefixed = PrefixedModel(model, tokenizer)
    prompts = drawn(model).float().requires_grad_()
    states = prefixed.target_states(prefixed.asking.rows(PROMPTS, TARGETS), prompts)
    assert states.dtype == torch.bfloat16
    states.float().sum().backward()
    assert prompts.grad is not None
    assert prompts.grad.dtype == torch.float32
    ids = prefixed.asking.prompt_ids(PROMPTS[:1])[0]
    written = tokenizer.decode(greedy_by_hand(model, ids, prompts[0].detach()), skip_special_tokens=True)
    assert prefixed.generate(PROMPTS[:1], [prompts[0].detach()], max_new_tokens=NEW) == [written]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["gpt2", "llama", "bart"])
def test_a_model_whose_weights_are_elsewhere_is_left_there(name, models, tokenizer):
    vectors = [*drawn(models(name))[:3], None]
    expected = PrefixedModel(models(name), tokenizer)
    model = fresh(name, tokenizer)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.get_input_embeddings().weight.is_meta
    prefixed = PrefixedModel(model, tokenizer)
    assert prefixed.generate(PROMPTS, vectors, max_new_tokens=NEW) == expected.generate(
        PROMPTS, vectors, max_new_tokens=NEW
    )
    for one, other in zip(
        prefixed.forced(PROMPTS, TARGETS, vectors), expected.forced(PROMPTS, TARGETS, vectors), strict=True
    ):
        np.testing.assert_allclose(one.nll, other.nll, atol=1e-5, rtol=1e-5)
    assert model.get_input_embeddings().weight.is_meta


def test_a_quantised_model_is_asked_and_learned_through(tokenizer):
    class Int8(nn.Module):
        """A linear layer whose weights are int8, as quantisers put in its place."""

        def __init__(self, linear):
            super().__init__()
            self.scale = nn.Buffer(linear.weight.detach().abs().amax(1, keepdim=True) / 127)
            self.weight = nn.Parameter(
                (linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False
            )

        def forward(self, x):
            return x @ (self.weight * self.scale).T

    model = fresh("llama", tokenizer)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module.bias is None:
            model.set_submodule(path, Int8(module))
    prefixed = PrefixedModel(model, tokenizer)
    prompts = drawn(model).requires_grad_()
    states = prefixed.target_states(prefixed.asking.rows(PROMPTS, TARGETS), prompts)
    prefixed.logits(states).logsumexp(-1).sum().backward()
    assert prompts.grad.abs().max() > 0
    vectors = list(prompts.detach())
    with torch.no_grad():
        logits, ids = targets_by_hand(prefixed, 1, vectors[1])
    nll = nn.functional.cross_entropy(logits, ids, reduction="none").numpy()
    np.testing.assert_allclose(prefixed.score(PROMPTS, TARGETS, vectors)[1], nll, atol=1e-5, rtol=1e-5)
    assert len(prefixed.generate(PROMPTS, vectors, max_new_tokens=2)) == 4


def test_a_model_without_padding_token_and_eos_is_asked(tokenizer):
    model = fresh("gpt2", tokenizer)
    model.generation_config.pad_token_id = model.generation_config.eos_token_id = None
    bare = train_tokenizer(TEXTS, 300)
    bare.pad_token = bare.eos_token = None
    prefixed = PrefixedModel(model, bare)
    vectors = [*drawn(model)[:3], None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        texts = prefixed.generate(PROMPTS, vectors, max_new_tokens=NEW)
    assert texts == prefixed.generate(PROMPTS, vectors, max_new_tokens=NEW, batch_tokens=1)


def test_a_row_may_be_as_long_as_the_model_reads(tokenizer):
    for name in ("gpt2", "gpt_neo", "bart"):
        small = {"gpt2": "n_positions", "gpt_neo": "max_position_embeddings"}.get(name)
        model = fresh(name, tokenizer, **({small: 24} if small else {}))
        prefixed = PrefixedModel(model, tokenizer)
        limit = prefixed.limit
        word = "Tellin "
        size = len(prefixed.asking.prompt_ids([(word * limit).strip()])[0]) // limit
        whole = 0 if name == "bart" else 1
        longest = (word * ((limit - whole) // size)).strip()
        tokens = 3
        vectors = [drawn(model, tokens=tokens)[0], None]
        short = (word * ((limit - tokens - whole) // size)).strip()
        assert prefixed.generate([short, longest], vectors, max_new_tokens=1) == [
            prefixed.generate([text], [own], max_new_tokens=1)[0]
            for text, own in zip([short, longest], vectors, strict=True)
        ]
        assert len(prefixed.score([short, longest], ["Tellin", "Tellin"], vectors)) == 2
        over = (word * (limit // size + 1)).strip()
        with pytest.raises(DataError, match=rf"prompt 1: \d+ tokens, 3 prompt vectors before them.* {limit} that"):
            prefixed.generate([short, over], [None, vectors[0]], max_new_tokens=1)
        with pytest.raises(DataError, match=rf"prompt( and target)? 0: \d+ tokens.* {limit} that the model reads"):
            prefixed.score([over], ["Tellin"])
    with pytest.raises(DataError, match=r"target 0: \d+ tokens are more than the 256"):
        prefixed.score([short], [over])
    with pytest.raises(DataError, match=r"max_new_tokens is 256, and the model writes 255"):
        prefixed.generate([short], max_new_tokens=256)


# chat, and what is refused --------------------------------------------------------------------------------------------

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[{{ name | default('assistant') }}] {% endif %}"
)


def test_a_chat_model_reads_its_template_and_others_are_refused(models):
    tokenizer = framed()  # the template has its BOS already
    model = models("qwen3")
    with pytest.raises(DataError, match="has no chat template"):
        PrefixedModel(model, tokenizer, chat=True)
    tokenizer.chat_template = TEMPLATE
    prefixed = PrefixedModel(model, tokenizer, chat=True)
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    applied = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert prefixed.asking.prompt_ids(PROMPTS) == applied
    whole = tokenizer.bos_token + f"[user] {PROMPTS[0]}\n[assistant] {TARGETS[0]}"
    asked = prefixed.asking.read(PROMPTS, TARGETS)[0]
    assert tokenizer.decode([*asked.ids, asked.targets[-1]]) == whole
    assert tokenizer.decode(asked.targets).strip() == TARGETS[0]
    named = PrefixedModel(model, tokenizer, chat=True, chat_options={"name": "bridge"})
    assert tokenizer.decode(named.asking.prompt_ids(PROMPTS[:1])[0]).endswith("\n[bridge] ")
    vectors = list(drawn(model))
    written = greedy_by_hand(model, applied[0], vectors[0])
    assert prefixed.generate(PROMPTS, vectors, max_new_tokens=NEW)[0] == tokenizer.decode(
        written, skip_special_tokens=True
    )


def test_what_cannot_be_asked_is_refused(models, tokenizer):
    model = models("llama")
    prefixed = PrefixedModel(model, tokenizer)
    own = drawn(model)[0]
    for match, call in [
        (r"prompt 1 is ''", lambda: prefixed.generate(["a", ""])),
        (r"prompt 0 is '', with no token", lambda: prefixed.score([""], ["is"])),
        (r"target 0 is ' '", lambda: prefixed.score(["a"], [" "])),
        (r"1 prompt vectors for 2 prompts", lambda: prefixed.generate(["a", "b"], [own])),
        (r"prompt 1 have shape \[2, 32\], wanted \[3, 32\]", lambda: prefixed.generate(["a"] * 2, [own, own[:2]])),
        (r"shape \[3, 31\]", lambda: prefixed.generate(["a"], [own[:, 1:]])),
        (r"shape \[0, 32\], wanted \[T, 32\]", lambda: prefixed.generate(["a"], [own[:0]])),
        (r"leave use_cache out", lambda: prefixed.generate(["a"], [own], use_cache=False)),
        (r"one answer", lambda: prefixed.generate(["a"], num_return_sequences=2, num_beams=2)),
        (r"max_new_tokens 0 and num_beams 1", lambda: prefixed.generate(["a"], max_new_tokens=0)),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=match):
            call()
    config = type("Config", (), {"model_type": "opt"})()
    other = type("Model", (), {"config": config})()
    with pytest.raises(DataError, match="is a opt, wanted one of gpt2"):
        PrefixedModel(other, tokenizer)
    slow = type("Slow", (), {"is_fast": False, "name_or_path": "slow"})()
    with pytest.raises(DataError, match="slow is a slow one"):
        PrefixedModel(model, slow)
    bare = train_tokenizer(TEXTS, 300)
    bare.bos_token = None
    with pytest.raises(DataError, match="has no BOS"):
        PrefixedModel(model, bare, bos=True)
    t5 = fresh("t5", tokenizer)
    t5.config.decoder_start_token_id = t5.generation_config.decoder_start_token_id = None
    with pytest.raises(DataError, match="no decoder_start_token_id"):
        PrefixedModel(t5, tokenizer)


@pytest.mark.parametrize("folder", ["gpt2", "llama2"])
def test_real_tokenizers_keep_a_prompts_tokens_before_its_target(folder, real_data, models):
    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers" / folder)
    prefixed = PrefixedModel(models("llama"), tokenizer)
    prompts, targets = ["The mother tongue of Danielle Darrieux is", "Who wrote it?"], ["English", "Émile Zola"]
    ids = prefixed.asking.prompt_ids(prompts)
    assert ids == tokenizer(prompts)["input_ids"]
    for mine, asked, target in zip(ids, prefixed.asking.read(prompts, targets), targets, strict=True):
        assert asked.ids[: len(mine)].tolist() == mine
        assert asked.first == len(mine) - 1
        assert tokenizer.decode(asked.targets).strip() == target
        assert len(asked.ids) == len(mine) + len(asked.targets) - 1


def test_the_head_is_the_models(models, tokenizer):
    weight, bias = PrefixedModel(models("gptj"), tokenizer).head()
    assert weight is output_head(models("gptj"))[0]
    assert bias is not None
