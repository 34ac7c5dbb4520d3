import math

import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from kedit.editing.sources import DataError
from kedit.recipe.paper import PaperNetworks, similarity
from kedit.recipe.paper_loss import contrastive_loss, hinge_nll, roles
from kedit.recipe.texts import TextBatch

H, E, T, D = 16, 12, 3, 24


def trunk(kind: str = "roberta", **settings: object) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": H, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
             "initializer_range": 0.3}  # fmt: skip
    config = AutoConfig.for_model(kind, vocab_size=50, pad_token_id=1, **sizes | settings)
    return AutoModel.from_config(config)


@pytest.fixture
def networks() -> PaperNetworks:
    return PaperNetworks(trunk(), E, tokens=T, key_width=D, sentinel_tokens=5).eval()


def texts(*lengths: int, seed: int = 0) -> TextBatch:
    torch.manual_seed(seed)
    ids = torch.randint(2, 50, (len(lengths), max(lengths)))
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    none = torch.zeros(len(lengths), 0, dtype=torch.int64)
    return TextBatch(ids.where(real, 1), real, none, none.bool(), none)


def naive(head, states, pooled):
    """The head's vector of one text from its states [L, H]."""
    x = torch.cat([pooled, states.mean(0), states.max(0).values, states.min(0).values])
    u = head[0].weight @ x + head[0].bias
    return u + (head[1].linear.weight @ u + head[1].linear.bias).clamp_min(0)


def naive_row(networks, head, batch, row):
    ids = batch.ids_NL[row, batch.real_NL[row]]
    read = networks.trunk(ids[None])
    return naive(head, read.last_hidden_state[0], read.pooler_output[0])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["roberta", "bert", "mpnet"])
def test_keys_queries_sentinel_and_prompts_are_the_papers(kind):
    networks = PaperNetworks(trunk(kind), E, tokens=T, key_width=D, sentinel_tokens=5).eval()
    batch, asked = texts(4, 9, 1), texts(7, 3, seed=1)
    keys = torch.stack([naive_row(networks, networks.key_head, batch, row) for row in range(3)])
    queries = torch.stack([naive_row(networks, networks.query_head, asked, row) for row in range(2)])
    states = networks.trunk.encoder(networks.sentinel_tokens[None])[0]
    sentinel = naive(networks.key_head, states[0], networks.trunk.pooler(states)[0])

    mine_keys, mine_queries = networks.keys(batch), networks.queries(asked)
    torch.testing.assert_close(similarity(mine_queries, mine_keys), queries @ keys.T / math.sqrt(D))
    torch.testing.assert_close(networks.threshold(mine_queries), queries @ sentinel / math.sqrt(D))
    hidden, out = networks.prompt_head[0].linear, networks.prompt_head[1]
    inner = keys + (keys @ hidden.weight.T + hidden.bias).relu()
    prompts = (inner @ out.weight.T + out.bias).reshape(3, T, E)
    torch.testing.assert_close(networks.prompts(batch, lambda ids: ids), prompts)
    torch.testing.assert_close(networks.prompts_of(mine_keys), prompts)
    assert (networks.key_width, networks.tokens, networks.key_reads_target) == (D, T, True)


def test_sizes_are_the_papers_by_default():
    config = AutoConfig.for_model("roberta", vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    with torch.device("meta"):
        networks = PaperNetworks(AutoModel.from_config(config), 4096)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in networks.named_children()}
    assert count["trunk"] == 124_645_632
    assert count["key_head"] + count["query_head"] + networks.sentinel_tokens.numel() == 58_744_320
    assert count["prompt_head"] == 67_125_248
    assert networks.sentinel_tokens.shape == (10, 768)


@torch.no_grad()
def test_the_sentinel_follows_the_weights(networks):
    queries = networks.queries(texts(5, 6))
    before = networks.threshold(queries)
    other = PaperNetworks(trunk("roberta", initializer_range=0.1), E, T, D, 5).eval()
    networks.load_state_dict(other.state_dict())
    torch.testing.assert_close(networks.threshold(queries), other.threshold(queries))
    assert (networks.threshold(queries) - before).abs().min() > 1e-4
    for parameter in (networks.sentinel_tokens, networks.trunk.encoder.layer[0].attention.self.value.weight):
        before = networks.threshold(queries)
        parameter.data.mul_(1.5)  # in evaluation, and unseen by version counters
        assert (networks.threshold(queries) - before).abs().min() > 1e-6


def test_gradients_reach_every_weight_that_is_used(networks):
    networks.train()
    queries, keys = networks.queries(texts(4, 7)), networks.keys(texts(5, 6, seed=1))
    own = torch.arange(2)
    loss = sum(one.mean for one in contrastive_loss(similarity(queries, keys), networks.threshold(queries), own))
    (loss + networks.prompts_of(keys).square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in networks.parameters())
    assert networks.sentinel_tokens.grad.any()


def test_similarities_are_float32_under_autocast(networks):
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        queries, keys = networks.queries(texts(4, 7)), networks.keys(texts(5, 6, seed=1))
        found, threshold = similarity(queries, keys), networks.threshold(queries)
        expected = networks.sentinel().float()
    assert queries.dtype == torch.bfloat16
    torch.testing.assert_close(found, queries.float() @ keys.float().T, rtol=0, atol=0)
    torch.testing.assert_close(threshold, queries.float() @ expected)
    assert found.dtype == threshold.dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "part"),
    [("distilbert", "encoder.layer"), ("modernbert", "encoder.layer"), ("electra", "pooler.dense"),
     ("albert", "encoder.layer"), ("bart", "encoder.layer")],
)  # fmt: skip
def test_a_trunk_of_another_form_is_refused(kind, part):
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
    given = trunk(kind, embedding_size=H, d_model=H, encoder_attention_heads=2, decoder_attention_heads=2, **special)
    with pytest.raises(DataError, match=f"'{kind}' without {part}; wanted BERT, RoBERTa"):
        PaperNetworks(given, E)


def naive_hinged(probabilities, labels, hinge):
    terms = []
    for p, label in zip(probabilities.tolist(), labels, strict=True):
        if p[label] < hinge * sorted(p)[-2]:
            terms.append(-math.log(p[label] + 1e-8))
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("hinge", [1.0, 1.2, 5.0, 1e6, math.inf])
def test_hinged_loss_against_plain_loops(hinge):
    torch.manual_seed(0)
    logits = (2 * torch.randn(200, 7)).requires_grad_()
    labels = torch.where(torch.rand(200) < 0.5, logits.argmax(1), torch.randint(7, (200,)))
    p = logits.detach().double().softmax(1)
    loss = hinge_nll(logits, labels, hinge).mean
    assert loss.item() == pytest.approx(naive_hinged(p, labels.tolist(), hinge), rel=1e-5)
    loss.backward()
    kept = torch.tensor([p[n, y] < hinge * p[n].sort().values[-2] for n, y in enumerate(labels.tolist())])
    assert torch.equal(logits.grad.any(1), kept)
    assert (0 < kept.sum() < 200) == (hinge < 1e6)
    own = p.gather(1, labels[:, None])
    expected = (p - torch.nn.functional.one_hot(labels, 7)) * own / (own + 1e-8) * kept[:, None] / kept.sum()
    torch.testing.assert_close(logits.grad.double(), expected, rtol=1e-4, atol=1e-7)


def test_what_has_won_and_what_is_not_there_cost_nothing():
    logits = torch.tensor([[5.0, 0.0, 1.0], [0.0, 9.0, 1.0]], requires_grad=True)
    for chosen in (slice(0, 2), slice(0, 0)):
        loss = hinge_nll(logits[chosen], torch.tensor([0, 1])[chosen]).mean
        assert loss.item() == 0
        loss.backward()
        assert not logits.grad.any()
    with pytest.raises(ValueError, match=r"hinge is 0\.5, wanted at least 1"):
        hinge_nll(logits, torch.tensor([0, 1]), 0.5)


def problem(edits: int, unrelated: int):
    """Similarities of two queries an edit (the prompts, then other wordings) and of unrelated ones."""
    torch.manual_seed(edits)
    queries = 2 * edits + unrelated
    own = torch.cat([torch.arange(edits), torch.arange(edits), torch.full((unrelated,), -1)])
    generality = (torch.arange(queries) // edits) == 1
    similarities, threshold = 2 * torch.randn(queries, edits), 2 * torch.randn(queries) + 1
    return similarities.requires_grad_(), threshold.requires_grad_(), own, generality


@pytest.mark.parametrize("hinge", [1.2, math.inf])
def test_contrastive_terms_against_plain_loops(hinge):
    similarities, threshold, own, generality = problem(6, 9)
    coin = torch.tensor([True, False, False, True, True, False])
    loss = contrastive_loss(similarities, threshold, own, roles(own, generality, coin), hinge)
    s, theta = similarities.detach(), threshold.detach()
    first, second, third = [], [], []
    for i in range(6):
        one, two = (i + 6, i) if coin[i] else (i, i + 6)
        first.append(torch.cat([s[one], theta[one, None]]).softmax(0).roll(-i))
        others = [s[two, j] for j in range(6) if j != i]
        second.append(torch.stack([theta[two], *others]).softmax(0))
    for q in range(12, 21):
        third.append(torch.cat([theta[q, None], s[q]]).softmax(0))
    expected = [naive_hinged(torch.stack(rows), [0] * len(rows), h)
                for rows, h in ((first, math.inf), (second, hinge), (third, hinge))]  # fmt: skip
    assert [term.mean.item() for term in loss] == pytest.approx(expected, rel=1e-5)
    assert min(expected) > 0
    plain = [naive_hinged(torch.stack(rows), [0] * len(rows), math.inf) for rows in (second, third)]
    assert (plain[0] < expected[1] and plain[1] < expected[2]) == (hinge < math.inf)  # some queries have won


def test_without_coin_every_query_has_both_roles():
    similarities, threshold, own, generality = problem(6, 0)
    heads, tails = (
        contrastive_loss(similarities, threshold, own, roles(own, generality, torch.full((6,), coin)), math.inf)
        for coin in (True, False)
    )
    both = contrastive_loss(similarities, threshold, own, hinge=math.inf)
    assert both.own.mean.item() == pytest.approx((heads.own.mean + tails.own.mean).item() / 2)
    assert both.without_own.mean.item() == pytest.approx((heads.without_own.mean + tails.without_own.mean).item() / 2)
    assert heads.own.mean.item() != pytest.approx(tails.own.mean.item())
    assert both.unrelated.mean == 0


@pytest.mark.parametrize("hinge", [1.2, math.inf])
def test_a_batch_of_one_learns(hinge):
    _, _, own, generality = problem(1, 1)
    similarities = torch.tensor([[0.3], [0.4], [0.2]], requires_grad=True)
    threshold = torch.tensor([0.1, 0.5, 0.3], requires_grad=True)
    loss = contrastive_loss(similarities, threshold, own, roles(own, generality, torch.tensor([True])), hinge)
    assert loss.own.mean > 0
    assert loss.without_own.mean == 0  # nothing is left beside the sentinel
    assert loss.unrelated.mean > 0
    sum(one.mean for one in loss).backward()
    assert similarities.grad.isfinite().all()
    assert similarities.grad[:, 0].ne(0).tolist() == [False, True, True]
    assert threshold.grad.isfinite().all()


def test_losses_are_float32_whatever_comes():
    similarities, threshold, own, _ = problem(6, 5)
    exact = contrastive_loss(similarities.bfloat16().float(), threshold.bfloat16().float(), own)
    with torch.autocast("cpu", torch.bfloat16):
        low = contrastive_loss(similarities.bfloat16(), threshold.bfloat16(), own)
    for mine, expected in zip(low, exact, strict=True):
        assert mine.total.dtype == torch.float32
        assert mine.mean.item() == pytest.approx(expected.mean.item(), rel=1e-6)


def test_training_makes_queries_find_their_keys(networks):
    edits, asked = texts(6, 5, 7, 6), texts(4, 4, 5, 5, 3, 6, seed=1)
    own = torch.tensor([0, 1, 2, 3, -1, -1])
    optimizer = torch.optim.Adam(networks.parameters(), 2e-3)
    for _ in range(60):
        queries = networks.queries(asked)
        terms = contrastive_loss(similarity(queries, networks.keys(edits)), networks.threshold(queries), own)
        loss = sum(term.mean for term in terms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        queries = networks.queries(asked)
        best = similarity(queries, networks.keys(edits)).max(1)
        fires = best.values > networks.threshold(queries)
    assert torch.where(fires, best.indices, -1).tolist() == own.tolist()
