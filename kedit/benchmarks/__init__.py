"""Other people's files, turned into the facts, edits, probes, mentions and questions that `editing` describes."""

from kedit.benchmarks.counterfact import CounterFact
from kedit.benchmarks.disambiguation import AidaTesta, Kore50, Rss500
from kedit.benchmarks.ecbd import Ecbd
from kedit.benchmarks.entity_inferences import EntityInferences
from kedit.benchmarks.knowedit import KnowEdit, RippleEdits
from kedit.benchmarks.qa import NaturalQuestions, WebQuestions
from kedit.benchmarks.sentences import Sentences
from kedit.benchmarks.zsre import Zsre

__all__ = [
    "AidaTesta",
    "CounterFact",
    "Ecbd",
    "EntityInferences",
    "KnowEdit",
    "Kore50",
    "NaturalQuestions",
    "RippleEdits",
    "Rss500",
    "Sentences",
    "WebQuestions",
    "Zsre",
]
