import numpy as np
import pytest

from kedit.kilm.infilling import (
    COPIED,
    INFILLED,
    KNOWLEDGE,
    Infilling,
    Markup,
    Mention,
    build,
    generator,
    markup,
    spans,
    spans_with_overlaps,
)

BART = Markup("bart", 2, 0, 2, 1, np.array([3]), 4, 5, 6, 7, 8)
T5 = Markup("t5", 1, None, 2, 1, np.arange(900, 1000), 4, 5, 6, 7, 8)
TEXT = np.arange(100, 240)
MENTIONS = [
    Mention(10, 12, np.array([50, 51]), np.array([60, 61, 62])),
    Mention(40, 41, np.array([52]), np.array([63])),
]
PLAIN = Infilling(masked_share=0.0)


def unmask(source, target, classes):
    """Put back what a BART source hides: decode(merge(source, spans)) == target."""
    merged, at = [], 0
    gone = (classes == INFILLED) | ((classes == KNOWLEDGE) & ~np.isin(target, [BART.ent_desc, BART.end_ent_desc]))
    for token in source:
        if token == BART.masks[0]:
            while at < len(target) and gone[at]:
                merged.append(target[at])
                at += 1
        else:
            assert target[at] == token
            merged.append(token)
            at += 1
    return merged


def test_worked_example_without_masking():
    example = build(TEXT[:5], [Mention(1, 3, np.array([50]), np.array([60, 61]))], BART, PLAIN, generator(0, 0, 0))
    assert example.source.tolist() == [0, 100, 4, 101, 102, 5, 6, 3, 7, 103, 104, 2]
    assert example.target.tolist() == [0, 100, 4, 101, 102, 5, 6, 50, 8, 60, 61, 7, 103, 104, 2]
    assert example.classes.tolist() == [COPIED] * 6 + [KNOWLEDGE] * 6 + [COPIED] * 3


def test_worked_example_for_t5():
    example = build(TEXT[:5], [Mention(1, 3, np.array([50]), np.array([60, 61]))], T5, PLAIN, generator(0, 0, 0))
    assert example.source.tolist() == [100, 4, 101, 102, 5, 6, 900, 7, 103, 104, 2]
    assert example.target.tolist() == [900, 50, 8, 60, 61, 901, 2]
    assert example.classes.tolist() == [COPIED] + [KNOWLEDGE] * 4 + [COPIED] * 2


@pytest.mark.parametrize("reference", [False, True])
def test_what_the_source_hides_is_what_the_target_adds(reference):
    for document in range(200):
        random = generator(0, 1, document)
        text = TEXT[: int(random.integers(41, 140))]
        example = build(text, MENTIONS, BART, Infilling(reference=reference), random)
        assert unmask(*example) == example.target.tolist()


def test_t5_target_holds_what_the_source_hides():
    for document in range(200):
        random = generator(0, 1, document)
        text = TEXT[: int(random.integers(41, 140))]
        example = build(text, MENTIONS, T5, Infilling(), random)
        hidden: dict[int, list[int]] = {}
        for token in example.target[:-1].tolist():
            if token >= 900:
                hidden[token] = []
            else:
                hidden[list(hidden)[-1]].append(token)
        merged = [t for token in example.source.tolist() for t in (hidden[token] if token >= 900 else [token])]
        whole = build(text, MENTIONS, BART, PLAIN, random).target.tolist()[1:]
        assert merged == whole
        assert list(hidden) == list(range(900, 900 + len(hidden)))


def test_exactly_the_share_is_masked_in_every_document():
    random = np.random.default_rng(0)
    runs = []
    for tokens in random.integers(0, 200, 2000).tolist():
        hidden = spans(tokens, 0.3, 3.0, random)
        assert hidden.sum() == round(0.3 * tokens)
        edges = np.diff(np.concatenate([[0], hidden.astype(int), [0]]))
        runs += (np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)).tolist()
    # zero-truncated Poisson(3) has mean 3.157; the last span of a document is cut
    assert 2.9 < np.mean(runs) < 3.2


def test_spans_stand_everywhere_alike():
    random = np.random.default_rng(0)
    rate = np.mean([spans(60, 0.3, 3.0, random) for _ in range(4000)], axis=0)
    # the ends of a document are reached by fewer spans
    assert rate.min() > 0.12
    assert rate[5:-5].min() > 0.27
    assert rate.max() < 0.36


def test_the_reference_masks_fewer_since_spans_overlap():
    random = np.random.default_rng(0)
    share = np.mean([spans_with_overlaps(400, 0.3, 3.0, random).mean() for _ in range(300)])
    assert 0.24 < share < 0.28


def test_mention_brackets_are_never_masked_and_knowledge_always():
    for document in range(100):
        example = build(TEXT, MENTIONS, BART, Infilling(masked_share=0.6), generator(3, 0, document))
        for bracket in (BART.ent, BART.end_ent, BART.ent_desc, BART.end_ent_desc):
            assert (example.source == bracket).sum() == 2
        assert not np.isin(example.source, [50, 51, 52, 60, 61, 62, 63, BART.sep]).any()


def test_same_seed_epoch_and_document_give_the_same_example():
    first = build(TEXT, MENTIONS, BART, Infilling(), generator(7, 2, 11))
    again = build(TEXT, MENTIONS, BART, Infilling(), generator(7, 2, 11))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (generator(8, 2, 11), generator(7, 3, 11), generator(7, 2, 12)):
        assert not np.array_equal(first.source, build(TEXT, MENTIONS, BART, Infilling(), other).source)


def test_t5_never_runs_out_of_sentinels():
    for sentinels in (7, 8, 12):
        few = T5._replace(masks=np.arange(900, 900 + sentinels))
        for document in range(200):
            example = build(TEXT, MENTIONS, few, Infilling(), generator(0, 0, document))
            assert set(example.target[example.target >= 900]) <= set(range(900, 900 + sentinels))


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"masked_share is 1\.5"):
        Infilling(masked_share=1.5)
    with pytest.raises(ValueError, match="span_length is 0"):
        Infilling(span_length=0)
    with pytest.raises(ValueError, match="described_share is 0"):
        Infilling(described_share=0)
    assert Infilling(reference=True).mentions == 1
    assert Infilling(knowledge=False).mentions == 0


def test_markup_knows_bart_and_t5_and_refuses_others(bart_tokenizer, t5_tokenizer):
    assert markup(bart_tokenizer).family == "bart"
    t5 = markup(t5_tokenizer)
    assert t5.family == "t5"
    assert len(t5.masks) == 100
    assert len({*t5.masks.tolist(), t5.ent, t5.end_ent, t5.ent_desc, t5.end_ent_desc, t5.sep}) == 105
    bart_tokenizer.mask_token = None
    with pytest.raises(ValueError, match="neither <extra_id_0>"):
        markup(bart_tokenizer)
    bart_tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no end or padding token"):
        markup(bart_tokenizer)
