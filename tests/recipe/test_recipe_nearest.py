"""The nearest key by the soft minimum over slots, against all similarities."""

import math

import pytest
import torch
from transformers import AutoConfig, AutoModel

from kedit.recipe import nearest as nearest_file
from kedit.recipe.nearest import nearest
from kedit.recipe.networks import SlotNetworks
from kedit.recipe.search import Index

SLOTS, WIDTH = 4, 8


@pytest.fixture(params=[1.0, 8.0, 50.0])
def networks(request):
    trunk = AutoModel.from_config(
        AutoConfig.for_model("roberta", vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                             intermediate_size=8)
    )  # fmt: skip
    return SlotNetworks(trunk, 8, slots=SLOTS, slot_width=WIDTH, strictness=request.param).eval()


def drawn(count, seed):
    """Slots that are alike more often than not, so that means mislead."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(SLOTS, 6, WIDTH, generator=generator)
    chosen = torch.randint(6, (count, SLOTS), generator=generator)
    slots = few[torch.arange(SLOTS), chosen] + 0.3 * torch.randn(count, SLOTS, WIDTH, generator=generator)
    return (torch.nn.functional.normalize(slots, dim=-1) / math.sqrt(SLOTS)).flatten(1)


def filled(keys):
    index = Index(keys.shape[1])
    index.add(range(len(keys)), keys)
    return index


def test_pairs_are_the_diagonal_and_never_exceed_the_inner_product(networks):
    queries, keys = drawn(200, 0), drawn(200, 1)
    pairs, whole = networks.pairwise(queries, keys), networks.similarities(queries, keys)
    torch.testing.assert_close(pairs, whole.diagonal())
    assert (pairs <= (queries * keys).sum(-1) + 1e-6).all()
    least = (queries * keys).unflatten(-1, (SLOTS, WIDTH)).sum(-1).amin(-1) * SLOTS
    assert (pairs >= least - 1e-6).all()
    torch.testing.assert_close(networks.pairwise(keys, keys), torch.ones(200))


def test_strictness_goes_from_the_mean_to_the_least(networks):
    queries, keys = drawn(50, 0), drawn(60, 1)
    cosines = torch.einsum("qsw,ksw->qks", queries.unflatten(-1, (SLOTS, WIDTH)), keys.unflatten(-1, (SLOTS, WIDTH)))
    networks.strictness = 1e-3
    assert torch.allclose(networks.similarities(queries, keys), SLOTS * cosines.mean(-1), atol=1e-3)
    networks.strictness = 1e4
    assert torch.allclose(networks.similarities(queries, keys), SLOTS * cosines.amin(-1), atol=1e-3)
    networks.strictness = 0.0
    assert networks.pairwise is None
    torch.testing.assert_close(networks.similarities(queries, keys), queries @ keys.T)


@pytest.mark.parametrize("count", [3, 16, 17, 3000])
def test_it_finds_what_all_similarities_have(networks, count):
    queries, keys = drawn(100, 2), drawn(count, 3)
    whole = networks.similarities(queries, keys)
    found = nearest(filled(keys), networks, queries, torch.full((100,), -torch.inf))
    torch.testing.assert_close(found.similarity_B, whole.amax(1))
    assert torch.equal(found.number_B, whole.argmax(1))


def test_the_best_by_inner_product_is_often_another(networks):
    queries, keys = drawn(100, 2), drawn(3000, 3)
    if networks.strictness >= 8:
        assert ((queries @ keys.T).argmax(1) != networks.similarities(queries, keys).argmax(1)).float().mean() > 0.1


def test_what_cannot_exceed_the_floor_is_not_looked_for(networks):
    queries, keys = drawn(100, 2), drawn(3000, 3)
    whole, asked = networks.similarities(queries, keys).amax(1), []

    class Counted(Index):
        def search(self, queries_BD, k=1):
            asked.append((len(queries_BD), k))
            return super().search(queries_BD, k)

    index = Counted(keys.shape[1])
    index.add(range(len(keys)), keys)
    floor = whole.median().expand(100)
    found = nearest(index, networks, queries, floor, count=2)
    above = whole > floor
    torch.testing.assert_close(found.similarity_B[above], whole[above])
    assert (found.similarity_B[~above] <= floor[~above]).all()
    del asked[1:]
    nearest(index, networks, queries, torch.ones(100), count=2)
    assert asked[1:] == [(100, 2)], "nothing exceeds 1"


def test_where_inner_products_mislead_all_keys_are_compared_once(networks):
    """A slot that always disagrees: every inner product is large, no similarity is."""
    keys = drawn(3000, 3).unflatten(-1, (SLOTS, WIDTH))
    keys[:, 1:] = keys[:1, 1:]
    queries = keys[:1].repeat(20, 1, 1)
    queries[:, 0] = -keys[:20, 0]
    keys, queries = keys.flatten(1), queries.flatten(1)
    most = []

    class Counted(Index):
        def search(self, queries_BD, k=1):
            most.append(k)
            return super().search(queries_BD, k)

    index = Counted(keys.shape[1])
    index.add(range(len(keys)), keys)
    found = nearest(index, networks, queries, torch.full((20,), -torch.inf))
    whole = networks.similarities(queries, keys)
    torch.testing.assert_close(found.similarity_B, whole.amax(1))
    torch.testing.assert_close(whole.gather(1, found.number_B[:, None])[:, 0], found.similarity_B)
    assert max(most) <= nearest_file.MOST


def test_without_keys_nothing_is_found(networks):
    found = nearest(Index(SLOTS * WIDTH), networks, drawn(3, 0), torch.zeros(3))
    assert found.number_B.tolist() == [-1] * 3
    assert (found.similarity_B == -torch.inf).all()


def test_where_similarity_is_the_inner_product_one_candidate_does(networks):
    networks.strictness = 0.0
    queries, keys = drawn(20, 4), drawn(300, 5)
    found = nearest(filled(keys), networks, queries, torch.zeros(20))
    assert torch.equal(found.number_B, (queries @ keys.T).argmax(1))
