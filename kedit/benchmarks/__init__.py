"""Other people's files, turned into the mentions and questions that `editing.sources` describes."""

from kedit.benchmarks.disambiguation import AidaTesta, Kore50, Rss500
from kedit.benchmarks.qa import NaturalQuestions, WebQuestions

__all__ = ["AidaTesta", "Kore50", "NaturalQuestions", "Rss500", "WebQuestions"]
