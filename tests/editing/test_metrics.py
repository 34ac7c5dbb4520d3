"""Each score against a reference of a few lines, and each metric split in two against the whole."""

import copy
from difflib import SequenceMatcher

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import Metric

from kedit.editing.metrics import (
    DisambiguationScore,
    ExactMatch,
    MeanOverTokens,
    RougeL,
    TokenF1,
    best_over_answers,
    exact_match,
    normalise_answer,
    rouge_l,
    token_f1,
)
from kedit.editing.sources import Candidate, MentionQuestion

TEXTS = ["The cat sat.", "a cat", "on the mat sat the cat", "", "New-York, 1996", "naïve Zoë 東京", "cat cat cat"]
WORDS = st.lists(st.sampled_from("abcde"), max_size=7).map(" ".join)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The  Beatles!", "beatles"),
        ("an apple a day", "apple day"),
        ("Theatre", "theatre"),
        ("54\u00a0Mbit/s", "54 mbits"),
        ("the", ""),
        ("A. A. Milne", "milne"),
        ("Zoë", "zoë"),
    ],
)
def test_normalise_answer(text, wanted):
    assert normalise_answer(text) == wanted


def test_exact_match_is_equality_once_normalised():
    assert exact_match("the Cat", "cat.") == 1
    assert exact_match("cats", "cat") == 0


def common_words(left, right):
    right = list(right)
    return sum(1 for word in left if word in right and not right.remove(word))


@pytest.mark.parametrize("prediction", TEXTS)
@pytest.mark.parametrize("answer", TEXTS)
def test_token_f1_against_precision_and_recall(prediction, answer):
    ours, theirs = normalise_answer(prediction).split(), normalise_answer(answer).split()
    common = common_words(ours, theirs)
    if common:
        precision, recall = common / len(ours), common / len(theirs)
        assert token_f1(prediction, answer) == pytest.approx(2 * precision * recall / (precision + recall))
    else:
        assert token_f1(prediction, answer) == (not ours and not theirs)


def subsequence(left, right):
    if not left or not right:
        return 0
    if left[0] == right[0]:
        return 1 + subsequence(left[1:], right[1:])
    return max(subsequence(left[1:], right), subsequence(left, right[1:]))


@settings(max_examples=60, deadline=None)
@given(WORDS, WORDS)
def test_rouge_l_against_the_longest_common_subsequence(prediction, answer):
    ours, theirs = prediction.split(), answer.split()
    wanted = 2 * subsequence(ours, theirs) / (len(ours) + len(theirs)) if ours and theirs else 0
    assert rouge_l(prediction, answer) == pytest.approx(wanted)


def test_rouge_l_reads_any_script():
    assert rouge_l("Zoë, 東京", "zoë 東京") == 1
    assert rouge_l("東京", "京都") == 0


def test_best_over_answers():
    assert best_over_answers(token_f1, "red car", ["blue", "red bus", "red"]) == pytest.approx(2 / 3)
    assert best_over_answers(token_f1, "red", []) == 0


QUESTIONS = ["cat", "red car", "", "Paris France"]
ANSWERS = [["a cat", "dog"], ["blue", "red bus"], ["x"], "paris, france"]


@pytest.mark.parametrize(
    ("metric", "wanted"), [(ExactMatch, 2 / 4), (TokenF1, (1 + 1 / 2 + 1) / 4), (RougeL, (2 / 3 + 1 / 2 + 1) / 4)]
)
def test_text_metrics_take_the_best_answer_and_the_mean(metric, wanted):
    judge = metric()
    judge.update(QUESTIONS, ANSWERS)
    assert judge.compute().item() == pytest.approx(wanted)


def test_mean_over_tokens_weighs_by_tokens_and_keeps_no_graph():
    loss = torch.tensor(6.0, requires_grad=True)
    mean = MeanOverTokens()
    mean.update(loss, 2)
    mean.update(1.0, torch.tensor(5))
    assert mean.compute().item() == pytest.approx(1.0)
    assert not mean.total.requires_grad


def question(gold, *titles):
    return MentionQuestion("A b.", (0, 1), [Candidate(title) for title in titles], gold)


MENTIONS = [
    question("A", "A", "B"),  # right
    question("A", "A", "B"),  # wrong
    question("A", "A", "B"),  # no answer
    question("C", "A", "B"),  # gold out of reach
    question("", "A", "B"),  # of no known entity, answered
    question("", "A"),  # of no known entity, rightly not answered
    question("D"),  # nothing to choose from
]
CHOSEN = ["A", "B", "", "A", "A", "", ""]


def test_disambiguation_score():
    score = DisambiguationScore()
    score.update(CHOSEN, MENTIONS)
    result = {key: value.item() for key, value in score.compute().items()}
    precision, recall = 1 / 4, 1 / 5
    f1 = 2 * precision * recall / (precision + recall)
    assert result == pytest.approx({"accuracy": 1 / 3, "precision": precision, "recall": recall, "f1": f1})


BATCHES = [
    (ExactMatch, QUESTIONS, ANSWERS),
    (TokenF1, QUESTIONS, ANSWERS),
    (RougeL, QUESTIONS, ANSWERS),
    (MeanOverTokens, [3.5, 1.0, 0.25, 8.0], [3, 1, 2, 9]),
    (DisambiguationScore, CHOSEN, MENTIONS),
]


def feed(metric: Metric, first, second):
    if isinstance(metric, MeanOverTokens):
        for total, tokens in zip(first, second, strict=True):
            metric.update(total, tokens)
    else:
        metric.update(first, second)


@pytest.mark.parametrize(("kind", "first", "second"), BATCHES)
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_two_processes_give_what_one_gives(kind, first, second, cut):
    whole, left, right = kind(), kind(), kind()
    feed(whole, first, second)
    feed(left, first[:cut], second[:cut])
    feed(right, first[cut:], second[cut:])
    merged = copy.deepcopy(left)
    merged.merge_state(right)

    theirs = iter([getattr(right, name) for name in right._reductions])
    left.sync(dist_sync_fn=lambda state, group: [state, next(theirs)], distributed_available=lambda: True)

    for both in (merged, left):
        torch.testing.assert_close(both._computed if both._computed else kind.compute(both), whole.compute())


@pytest.mark.parametrize("kind", [kind for kind, _, _ in BATCHES])
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_empty_is_zero_and_not_nan(kind):
    result = kind().compute()
    for value in result.values() if isinstance(result, dict) else [result]:
        assert value.item() == 0


@pytest.mark.parametrize("kind", [ExactMatch, TokenF1, RougeL, DisambiguationScore])
def test_lengths_must_agree(kind):
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is shorter"):
        kind().update(["a", "b"], MENTIONS[:1] if kind is DisambiguationScore else ["a"])


def test_a_model_in_bfloat16_leaves_its_metrics_exact():
    model = torch.nn.Linear(2, 2)
    model.mean = MeanOverTokens()
    model.mean.update(1001.0, 1)
    model.to(torch.bfloat16)
    for _ in range(300):
        model.mean.update(1.0, 1)
    assert model.weight.dtype == torch.bfloat16
    assert model.mean.total.item() == 1301
    model.mean.reset()
    assert model.mean.total.dtype == torch.float64
    assert model.mean.tokens.dtype == torch.int64


def test_rouge_l_and_token_f1_differ_where_order_matters():
    assert token_f1("x y", "y x") == 1
    assert rouge_l("x y", "y x") == pytest.approx(SequenceMatcher(None, "xy", "yx").ratio())
