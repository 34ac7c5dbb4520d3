"""The search among keys against a sort of all products."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kedit.editing.sources import DataError
from kedit.recipe import search
from kedit.recipe.search import FaissIndex, Index

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(search, "BLOCK", 128)
    monkeypatch.setattr(search, "STEPS", {"cpu": 64})


def unit(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    keys = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(keys, dim=1)


def sorted_products(index: Index, numbers: list[int], queries: torch.Tensor, k: int) -> list[list[int]]:
    """The same by the book: stored keys, all products in float64, sorted; of equal ones the newest first."""
    products = queries.double() @ index.keys(numbers).double().T
    order = [sorted(range(len(numbers)), key=lambda i: (-round(row[i].item(), 6), -numbers[i])) for row in products]
    return [[numbers[i] for i in best[:k]] for best in order]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 5, 33, 64, 500, 1000])
def test_finds_what_a_sort_of_all_products_finds(small_blocks, dtype, count):
    index = Index(24, dtype=dtype)
    keys, queries = unit(count, 24), unit(7, 24, seed=1) * 3
    for start in range(0, count, 90):
        index.add(range(start, min(start + 90, count)), keys[start : start + 90])
    for k in (1, 4, 40):
        found = index.search(queries, k)
        wanted = sorted_products(index, list(range(count)), queries, k)
        assert [row[: min(k, count)] for row in found.numbers_BK.tolist()] == wanted
        products = (queries @ index.keys(range(count)).T).sort(1, descending=True).values
        best = min(k, count)
        torch.testing.assert_close(found.scores_BK[:, :best], products[:, :best], rtol=1e-5, atol=1e-6)
        assert (found.numbers_BK[:, best:] == -1).all()
        assert (found.scores_BK[:, best:] == -torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_first_pass_does_not_decide_between_near_keys(small_blocks, dtype):
    """Keys that differ by less than the products' rounding: the first pass cannot tell them apart, the answer does."""
    torch.manual_seed(1)
    base = unit(1, 64)
    keys = base + 2.0**-9 * torch.randn(400, 64)
    index = Index(64, dtype=dtype)
    index.add(range(400), keys)
    queries = base + 0.1 * torch.randn(20, 64)
    rough = (queries.to(dtype) @ index.keys(range(400)).to(dtype).T).argmax(1)
    exact = (queries.double() @ index.keys(range(400)).double().T).argmax(1)
    assert (rough != exact).any()
    assert index.search(queries).numbers_BK[:, 0].tolist() == exact.tolist()


def test_a_lower_precision_of_products_does_not_decide_either(small_blocks):
    index = Index(16)
    index.add(range(300), unit(300, 16))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = index.search(unit(9, 16, 1), 3)
    finally:
        torch.set_float32_matmul_precision(before)
    assert found.numbers_BK.tolist() == sorted_products(index, list(range(300)), unit(9, 16, 1), 3)


def test_of_equal_keys_the_newest_comes_first(small_blocks):
    index = Index(4)
    index.add([3, 9, 5, 200], torch.ones(4, 4))
    assert index.search(torch.ones(1, 4), 4).numbers_BK.tolist() == [[200, 9, 5, 3]]
    assert index.search(-torch.ones(1, 4), 2).numbers_BK.tolist() == [[200, 9]]
    assert index.search(torch.zeros(1, 4), 1).scores_BK.tolist() == [[0.0]]


def test_nothing_stored_nothing_found():
    index = Index(4)
    found = index.search(torch.ones(2, 4), 3)
    assert found.numbers_BK.tolist() == [[-1] * 3] * 2
    assert (found.scores_BK == -torch.inf).all()
    assert index.remove([1, 2]) == 0
    assert index.search(torch.ones(0, 4)).numbers_BK.shape == (0, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "remove"]), st.sets(st.integers(0, 300), max_size=90)), max_size=8))
def test_adding_and_removing_agrees_with_a_dict(steps):
    before = search.BLOCK, search.STEPS
    search.BLOCK, search.STEPS = 64, {"cpu": 32}
    try:
        index, model = Index(6, dtype=torch.float16), {}
        for step, (what, numbers) in enumerate(steps):
            chosen = sorted(numbers)
            if what == "add":
                keys = unit(len(chosen), 6, seed=step)
                index.add(chosen, keys)
                model |= dict(zip(chosen, keys, strict=True))
            else:
                assert index.remove(chosen) == len(numbers & model.keys())
                model = {number: key for number, key in model.items() if number not in numbers}
            assert len(index) == len(model)
        if model:
            stored = torch.stack([model[number] for number in sorted(model)]).half().float()
            assert torch.equal(index.keys(sorted(model)), stored)
            queries = unit(3, 6, seed=99)
            found = index.search(queries, 2)
            assert found.numbers_BK[:, : len(model)].tolist() == sorted_products(index, sorted(model), queries, 2)
    finally:
        search.BLOCK, search.STEPS = before


def test_adding_one_by_one_copies_no_more_than_the_last_block(small_blocks):
    index = Index(4)
    index.add(range(128), unit(128, 4))
    first = index._blocks[0].data_ptr()
    sizes = set()
    for number in range(128, 400):
        index.add([number], unit(1, 4))
        sizes.add(len(index._blocks[-1]))
    assert index._blocks[0].data_ptr() == first
    assert sizes == {32, 64, 128}
    index.remove(range(400))
    assert len(index) == len(index._blocks) == 0


@pytest.mark.parametrize(
    ("numbers", "keys", "told"),
    [
        ([1], torch.ones(1, 5), r"shape \[1, 5\].*wanted \[number, 4\]"),
        ([1, 2], torch.ones(1, 4), "1 keys for 2 numbers"),
        ([1, 1], torch.ones(2, 4), "come once"),
        ([-1], torch.ones(1, 4), "0 or more"),
        ([1], torch.ones(1, 4, dtype=torch.int64), "floats"),
        ([1, 2], torch.tensor([[1.0] * 4, [1, 2, float("nan"), 1]]), "key 2 of 2 holds NaN or Inf"),
        ([1], torch.full((1, 4), 40_000.0), r"does not fit torch.float16"),
    ],
)
def test_bad_keys_are_refused_by_row(numbers, keys, told):
    index = Index(4, dtype=torch.float16)
    with pytest.raises(DataError, match=told):
        index.add(numbers, keys)
    assert len(index) == 0


def test_bad_queries_and_numbers_are_refused():
    index = Index(4)
    index.add([1], np.ones((1, 4), np.float32))
    with pytest.raises(DataError, match="query 1 of 1 holds NaN"):
        index.search(torch.full((1, 4), torch.nan))
    with pytest.raises(DataError, match="k=0"):
        index.search(torch.ones(1, 4), 0)
    with pytest.raises(DataError, match="no key of number 7"):
        index.keys([1, 7])
    with pytest.raises(DataError, match="wanted one of"):
        Index(4, dtype=torch.int8)


def test_without_faiss_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(DataError, match=r"pip install 'kedit\[faiss\]'"):
        FaissIndex(4)


def test_faiss_answers_as_the_index_of_torch_does():
    ours, theirs = Index(8), FaissIndex(8)
    keys, queries = unit(50, 8), unit(5, 8, 1)
    for index in (ours, theirs):
        index.add(range(50), keys.numpy())
        index.remove(range(10, 20))
        index.add([3, 70], keys[:2].numpy() * 2)
    assert len(theirs) == len(ours) == 41
    for k in (1, 5, 45):
        mine, found = ours.search(queries, k), theirs.search(queries, k)
        assert torch.equal(mine.numbers_BK, found.numbers_BK)
        torch.testing.assert_close(mine.scores_BK, found.scores_BK)
    with pytest.raises(DataError, match="wanted finite"):
        theirs.add([1], np.full((1, 8), np.nan))
    with pytest.raises(DataError, match="wanted finite"):
        theirs.search(np.ones((1, 7), np.float32))
    with pytest.raises(DataError, match="no index 'Nonsense'"):
        FaissIndex(8, "Nonsense")


@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat", "RR8,IVF16,Flat"])
def test_faiss_finds_keys_by_their_numbers_after_others_are_gone(factory):
    index, keys = FaissIndex(8, factory), unit(700, 8)
    index.add(range(700), keys.numpy())
    index.add([5, 900], -keys[[5, 6]].numpy())
    assert index.remove([7, 7, 8, 1000]) == 2
    assert len(index) == 699
    found = index.search(torch.cat([keys[9:12], -keys[5:7]]))
    assert found.numbers_BK[:, 0].tolist() == [9, 10, 11, 5, 900]
    torch.testing.assert_close(found.scores_BK, torch.ones(5, 1))


def test_faiss_does_not_train_on_too_few_keys():
    index = FaissIndex(8, "IVF16,Flat")
    with pytest.raises(DataError, match="'IVF16,Flat' of faiss cannot be trained on 3 keys"):
        index.add(range(3), unit(3, 8).numpy())
    found = index.search(unit(2, 8), 3)
    assert (len(index), found.numbers_BK.tolist()) == (0, [[-1] * 3] * 2)


@pytest.mark.parametrize("factory", ["HNSW16", "IVF16,Flat,RFlat"])
def test_a_faiss_index_that_cannot_forget_is_refused(factory):
    with pytest.raises(DataError, match=f"no index '{factory}' from which keys can be taken"):
        FaissIndex(8, factory)
