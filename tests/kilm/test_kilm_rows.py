import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kedit.kilm.rows import Rows


@given(st.lists(st.integers(1, 64), min_size=1, max_size=300), st.integers(0, 5), st.booleans())
def test_every_document_once_and_no_row_too_long(sizes, seed, packing):
    sizes = np.array(sizes)
    documents = np.arange(len(sizes)) + 1000
    rows = Rows(documents, sizes, 64, seed, packing)
    placed = [rows[index].tolist() for index in range(len(rows))]
    assert sorted(document for row in placed for document in row) == documents.tolist()
    assert all(sizes[np.array(row) - 1000].sum() <= 64 for row in placed)
    if not packing:
        assert all(len(row) == 1 for row in placed)


def test_rows_of_paragraphs_are_nearly_full():
    random = np.random.default_rng(0)
    sizes = np.minimum(random.lognormal(4.9, 0.6, 20000).astype(int) + 2, 512)
    rows = Rows(np.arange(len(sizes)), sizes, 1024, seed=0)
    assert sizes.sum() / (len(rows) * 1024) > 0.99


def test_same_seed_same_rows():
    sizes = np.random.default_rng(0).integers(1, 64, 500)
    one, two, other = (Rows(np.arange(500), sizes, 64, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.documents, two.documents)
    assert not np.array_equal(one.documents, other.documents)
