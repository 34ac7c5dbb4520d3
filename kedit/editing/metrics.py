"""How answers are judged: functions of two strings, and metrics that keep sums and counts of them, divided last.

Knows nothing of models. Every metric is right across processes (its states are added) and 0 where it saw nothing.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text.rouge import rouge_score

from kedit.editing.sources import MentionQuestion

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = {"a", "an", "the"}
_WORDS = re.compile(r"[^\W_]+")


def normalise_answer(text: str) -> str:
    """The text as SQuAD compares it: lower case, without ASCII punctuation and English articles, single spaces."""
    return " ".join(word for word in text.lower().translate(_PUNCTUATION).split() if word not in _ARTICLES)


def exact_match(prediction: str, answer: str) -> float:
    """1 where both are the same once normalised, else 0."""
    return float(normalise_answer(prediction) == normalise_answer(answer))


def token_f1(prediction: str, answer: str) -> float:
    """F1 of the normalised words, repeated words counted; two empty texts agree."""
    ours, theirs = normalise_answer(prediction).split(), normalise_answer(answer).split()
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))


def rouge_l(prediction: str, answer: str) -> float:
    """F-measure of the longest common subsequence of words.

    Words are runs of letters and digits of any script; the usual definition keeps only a-z and 0-9, and is the same
    on text that has no others.
    """
    scores = rouge_score(
        prediction.lower(), answer.lower(), tokenizer=_WORDS.findall, normalizer=str, rouge_keys="rougeL"
    )
    return float(scores["rougeL_fmeasure"])


def best_over_answers(score: Callable[[str, str], float], prediction: str, answers: Iterable[str]) -> float:
    """The best score against any of the answers; 0 where there are none."""
    return max((score(prediction, answer) for answer in answers), default=0.0)


class _SumsAndCounts(Metric):
    """Sums (float64) and counts (int64) that are added across processes."""

    full_state_update = False
    higher_is_better: bool | None = True

    def __init__(self, sums: Sequence[str] = (), counts: Sequence[str] = (), **metric_options: Any) -> None:
        super().__init__(**metric_options)
        for names, dtype in ((sums, torch.float64), (counts, torch.int64)):
            for name in names:
                self.add_state(name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> torch.nn.Module:
        # A module moved to bfloat16 would take its metrics along, and a bfloat16 sum stops growing at 256.
        return super()._apply(lambda state: state.to(fn(state).device), exclude_state)


class _MeanOverTexts(_SumsAndCounts):
    """The mean of a score of (prediction, answer), against the best of each question's answers."""

    total: Tensor
    count: Tensor
    score: staticmethod

    def __init__(self, **metric_options: Any) -> None:
        super().__init__(sums=["total"], counts=["count"], **metric_options)

    def update(self, predictions: Sequence[str], answers: Sequence[str | Sequence[str]]) -> None:
        """Add questions.

        Args:
            predictions: one text a question.
            answers: for each question its one right answer, or all of them.

        Raises:
            ValueError: the two are not of one length.
        """
        scores = [
            best_over_answers(self.score, prediction, [right] if isinstance(right, str) else right)
            for prediction, right in zip(predictions, answers, strict=True)
        ]
        self.total += sum(scores)
        self.count += len(scores)

    def compute(self) -> Tensor:
        return _ratio(self.total, self.count)


class ExactMatch(_MeanOverTexts):
    """The share of predictions that equal an answer once normalised."""

    score = staticmethod(exact_match)


class TokenF1(_MeanOverTexts):
    """The mean over questions of the normalised words' F1."""

    score = staticmethod(token_f1)


class RougeL(_MeanOverTexts):
    """The mean over questions of ROUGE-L's F-measure."""

    score = staticmethod(rouge_l)


class MeanOverTokens(_SumsAndCounts):
    """A mean over tokens (a loss, say) from sums over batches of any size."""

    higher_is_better = None
    total: Tensor
    tokens: Tensor

    def __init__(self, **metric_options: Any) -> None:
        super().__init__(sums=["total"], counts=["tokens"], **metric_options)

    def update(self, total: Tensor | float, tokens: Tensor | int) -> None:
        """Add a batch: the sum over its tokens, and how many they are."""
        self.total += total.detach() if isinstance(total, Tensor) else total
        self.tokens += tokens

    def compute(self) -> Tensor:
        return _ratio(self.total, self.tokens)


class DisambiguationScore(_SumsAndCounts):
    """How many mentions are given the right entity.

    - accuracy: of the linked mentions with the gold among their candidates, the share answered rightly
    - recall, precision, f1 (InKB, micro): right answers over all linked mentions (those that no candidate answers
      too); right answers over all answers (those to mentions of no known entity too); their harmonic mean
    """

    answered: Tensor
    linked: Tensor
    reachable: Tensor
    right: Tensor
    right_reachable: Tensor

    def __init__(self, **metric_options: Any) -> None:
        counts = ["answered", "linked", "reachable", "right", "right_reachable"]
        super().__init__(counts=counts, **metric_options)

    def update(self, titles: Sequence[str], questions: Sequence[MentionQuestion]) -> None:
        """Add mentions.

        Args:
            titles: the title chosen for each, empty where none was.
            questions: the mentions.

        Raises:
            ValueError: the two are not of one length.
        """
        pairs = list(zip(titles, questions, strict=True))
        linked = [(title == question.gold, question) for title, question in pairs if question.gold]
        reachable = [right for right, question in linked if question.gold in {c.title for c in question.candidates}]
        self.answered += sum(bool(title) for title in titles)
        self.linked += len(linked)
        self.right += sum(right for right, _ in linked)
        self.reachable += len(reachable)
        self.right_reachable += sum(reachable)

    def compute(self) -> dict[str, Tensor]:
        return {
            "accuracy": _ratio(self.right_reachable, self.reachable),
            "precision": _ratio(self.right, self.answered),
            "recall": _ratio(self.right, self.linked),
            "f1": _ratio(2 * self.right, self.answered + self.linked),
        }


def _ratio(total: Tensor, count: Tensor) -> Tensor:
    return total.double() / count.clamp(min=1)
