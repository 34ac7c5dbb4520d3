"""A small made-up world, so that everything runs with nothing to download. Its data is for demonstration only."""

from kedit.world.base_lm import WorldLM
from kedit.world.definitions import NewEntities
from kedit.world.facts import World
from kedit.world.reading_encoder import ReadingEncoder
from kedit.world.reading_lm import ReadingLM
from kedit.world.realm_edits import RealmEdits, RealmQuestions
from kedit.world.realm_encoder import RealmEncoder
from kedit.world.realm_seq2seq import WorldSeq2Seq
from kedit.world.registry_edits import RegistryEdits, RegistryQuestions
from kedit.world.wiki import WorldWiki

__all__ = [
    "NewEntities",
    "ReadingEncoder",
    "ReadingLM",
    "RealmEdits",
    "RealmEncoder",
    "RealmQuestions",
    "RegistryEdits",
    "RegistryQuestions",
    "World",
    "WorldLM",
    "WorldSeq2Seq",
    "WorldWiki",
]
