"""Other people's files, turned into the facts, probes, mentions and questions that `editing` describes."""

from kedit.benchmarks.disambiguation import AidaTesta, Kore50, Rss500
from kedit.benchmarks.ecbd import Ecbd
from kedit.benchmarks.entity_inferences import EntityInferences
from kedit.benchmarks.qa import NaturalQuestions, WebQuestions

__all__ = ["AidaTesta", "Ecbd", "EntityInferences", "Kore50", "NaturalQuestions", "Rss500", "WebQuestions"]
