"""Edits of the realm with the probes that judge them, the same facts as definitions, and questions no edit concerns.

Made-up data for demonstration. Knows no model and no method.
"""

import random
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

from kedit.editing.edits import Edit, EditSource, probe
from kedit.editing.probes import Fact, Probe
from kedit.editing.sources import DataError, Question, QuestionSource
from kedit.world import realm_text as text
from kedit.world.realm import Realm, Thing, definition, relations
from kedit.world.realm_reading import Sentence, asking, only, turned

Split = Literal["train", "validation", "test"]
KNOWN: dict[Split, tuple[int, ...]] = {"train": (0,), "validation": (1,), "test": (2, 3)}
"""Quarters of the known things about which a split asks what should stay: what training holds in place is no proof."""
VALIDATION = 200  # new things of validation; the others are of test
BEGINNINGS = 2000  # of plain documents, that the edits of a stream share
ASIDE = 5  # of so many strangers one is never edited


class RealmEdits(EditSource):
    """All that is told of things that the base model does not know, one relation an edit; the splits share no thing.

    The edits of a thing follow one another. An edit's own prompt is one of two wordings of its relation. Groups of
    probes:

    - "generality": the other wording; "generality/new": the third, absent in "train".
    - "locality/near": a known fact of something whose name has a word in common; "locality/far": of anything else
      known; "locality/text": two sentences on something known, up to the last object.
    - "portability/one_hop": what follows from the edit by what is known of its target; "portability/two_hops": by what
      is known of that, in turn.
    - "portability/alias": a wording with the short name, where nothing else bears it; "portability/inverse": the name,
      asked for by all that is told of it, where this is told of nothing else; with the last edit of a thing. Base
      models have learned both forms from the text of "edits", and from no other.

    Args:
        split: train, validation or test.
        count: how many edits.
        seed: of the order of things, and of wordings.
        known: how many things the base model knows, as in WorldLM.
        realm: seed of the realm, as in WorldLM.
        names: also ask by the short name, and for the name.
        held_out: "train" lacks the third wording of each relation. A method that learns what wordings ask for meets
            one that it cannot know: these wordings share no word.
    """

    name = "realm"

    def __init__(
        self, split: Split = "test", count: int = 1000, seed: int = 0, known: int = 120, realm: int = 0,
        names: bool = True, held_out: bool = True,
    ):  # fmt: skip
        if count < 1:
            raise DataError(f"count is {count}, wanted at least 1 edit")
        self.split, self.count, self.seed, self.known, self.realm = _checked(split), count, seed, known, realm
        self.names, self.held_out = names, held_out
        self._defined: dict[str, tuple[Thing, tuple[str, ...]]] = {}

    def load(self) -> list[Edit]:
        world = Realm(self.known, self.realm)
        rng = random.Random(f"edits {self.split} {self.seed}")
        things = self._stream(world, rng)
        around = _Around(world, things, self.split, rng, self.names, self.held_out)
        self._defined = {thing.name: (thing, (thing.short,) if thing.name in around.alone else ()) for thing in things}
        edits: list[Edit] = []
        for thing in things:
            told = text.TOLD[thing.kind]
            for relation in told:
                edits.append(around.edit(f"{self.split}-{len(edits)}", thing, relation, relation == told[-1]))
        return edits[: self.count]

    def define(self, edits: Sequence[Edit]) -> list[Fact]:
        """What these edits tell as definitions, one for each thing all of whose edits are among them."""
        if not self._defined:
            self.load()
        told: dict[str, dict[str, str]] = {}
        for edit in edits:
            told.setdefault(edit.subject, {})[edit.relation] = edit.id
        found = []
        for name, ids in told.items():
            if name not in self._defined:
                continue
            thing, aliases = self._defined[name]
            if all(relation in ids for relation in text.TOLD[thing.kind]):
                # the wording is the same whatever else is defined
                said = definition(thing, random.Random(f"definition {self.seed} {name}"))
                found.append(Fact(next(iter(ids.values())), name, said, aliases))
        return found

    def undefined(self) -> list[str]:
        """None: whoever all is told of is defined."""
        return []

    def plain_texts(self, count: int) -> list[str]:
        """Texts of known things and of strangers whom no edit concerns, that no model was trained on."""
        world = Realm(self.known, self.realm)
        rng = random.Random(f"plain {self.split} {self.seed}")
        others = _outsiders(world, _quarters(world, self.split), rng)
        return [_plain(next(others), rng) for _ in range(count)]

    def _stream(self, world: Realm, rng: random.Random) -> list[Thing]:
        """As many things as the edits need, none twice."""
        if self.split == "train":
            things: list[Thing] = []
            seen, needed = set[str](), self.count
            for thing in world.strangers(rng):
                if needed <= 0:
                    break
                if thing.name not in seen and not _is_aside(thing):
                    seen.add(thing.name)
                    things.append(thing)
                    needed -= len(text.TOLD[thing.kind])
            return things
        given = world.new[:VALIDATION] if self.split == "validation" else world.new[VALIDATION:]
        things = rng.sample(given, len(given))
        most = sum(len(text.TOLD[thing.kind]) for thing in things)
        if self.count > most:
            raise DataError(f"{self.count} edits are wanted, but {self.split!r} has {most}: lower `count`")
        return things


class _Around:
    """What edits and their probes are made of, looked up once."""

    def __init__(self, world: Realm, things: Sequence[Thing], split: Split, rng: random.Random, names: bool,
                 held_out: bool):  # fmt: skip
        self.rng, self.split, self.held_out = rng, split, held_out
        self.known = _quarters(world, split)
        self.near: dict[str, list[Thing]] = {}  # by a word of the name
        for thing in self.known:
            for word in thing.words:
                self.near.setdefault(word, []).append(thing)
        everything = [*world.all_known, *things]
        short = Counter(thing.short for thing in everything)
        self.alone = {thing.name for thing in things if names and short[thing.short] == 1}
        self.unlike = only([*world.known, *things]) if names else set[str]()
        self.beginnings = [_going_on(rng.choice(self.known), rng) for _ in range(BEGINNINGS)]

    def edit(self, id: str, thing: Thing, relation: str, is_last: bool) -> Edit:
        rng = self.rng
        *trained, held_out = text.STATEMENTS[relation]
        if self.split == "train" and not self.held_out:
            trained.append(held_out)
        own, other = (asking(thing, relation, wording) for wording in rng.sample(trained, 2))
        probes = [_probe(id, "generality", other)]
        if self.split != "train":
            probes.append(_probe(id, "generality/new", asking(thing, relation, held_out)))
        probes += self._locality(id, thing)
        for group, table in (("one_hop", text.ONE_HOP), ("two_hops", text.TWO_HOPS)):
            if follows := table.get(relation):
                probes.append(_probe(id, f"portability/{group}", self._asked(thing, rng.choice(follows))))
        if thing.name in self.alone:
            named = asking(thing, relation, rng.choice(trained), thing.short)
            probes.append(_probe(id, "portability/alias", named))
        if is_last and thing.name in self.unlike:
            probes.append(_probe(id, "portability/inverse", turned(thing, rng)))
        return Edit(id, own.prompt, own.object, thing.name, relation, tuple(probes))

    def _locality(self, id: str, thing: Thing) -> Iterator[Probe]:
        alike = [one for word in sorted(thing.words) for one in self.near.get(word, ())]
        if alike:
            yield self._known(id, "locality/near", self.rng.choice(alike))
        while (far := self.rng.choice(self.known)).words & thing.words:
            pass
        yield self._known(id, "locality/far", far)
        yield probe(id, "locality/text", self.rng.choice(self.beginnings), "")

    def _known(self, id: str, group: str, thing: Thing) -> Probe:
        return _probe(id, group, self._asked(thing, self.rng.choice(relations(thing))))

    def _asked(self, thing: Thing, relation: str) -> Sentence:
        return asking(thing, relation, self.rng.choice(text.wordings(relation)))


class RealmQuestions(QuestionSource):
    """Prompts and sentences that no edit of any stream concerns: to train a gate, to set it, to judge it.

    Half are plain texts or how such a text begins. The others ask about strangers whom no edit concerns, and about what
    the base model knows. `Question.source` tells which: plain, stranger or known.

    Args:
        split: train, validation (to set a gate) or test.
        count: how many.
        seed: of the choice.
        known: how many things the base model knows, as in WorldLM.
        realm: seed of the realm, as in WorldLM.
    """

    name = "realm_questions"

    def __init__(self, split: Split = "test", count: int = 1000, seed: int = 0, known: int = 120, realm: int = 0):
        if count < 1:
            raise DataError(f"count is {count}, wanted at least 1 question")
        self.split, self.count, self.seed, self.known, self.realm = _checked(split), count, seed, known, realm

    def __iter__(self) -> Iterator[Question]:
        world = Realm(self.known, self.realm)
        rng = random.Random(f"questions {self.split} {self.seed}")
        known = _quarters(world, self.split)
        strangers, others = _strangers(world, rng), _outsiders(world, known, rng)
        for _ in range(self.count):
            kind = rng.choices(("plain", "stranger", "known"), (0.5, 0.35, 0.15))[0]
            if kind == "plain":
                said = _plain(next(others), rng)
                yield Question(said if rng.random() < 0.5 else _beginning(said, rng), [], kind)
                continue
            thing = rng.choice(known) if kind == "known" else next(strangers)
            relation = rng.choice(relations(thing))
            asked = asking(thing, relation, rng.choice(text.wordings(relation)))
            yield Question(asked.prompt, [asked.object] if kind == "known" else [], kind)


def _probe(id: str, group: str, said: Sentence) -> Probe:
    return probe(id, group, said.prompt, said.object)


def _plain(thing: Thing, rng: random.Random) -> str:
    """A definition, or two sentences."""
    if thing.kind in text.DEFINITIONS and rng.random() < 0.5:
        return definition(thing, rng)
    chosen = rng.sample(relations(thing), 2)
    return " ".join(str(asking(thing, one, rng.choice(text.wordings(one)))) for one in chosen)


def _beginning(said: str, rng: random.Random) -> str:
    words = said.split()
    return " ".join(words[: rng.randint(2, len(words) - 1)])


def _going_on(thing: Thing, rng: random.Random) -> str:
    """A plain text on a known thing up to an object: what follows is known, and no guess."""
    first, second = rng.sample(relations(thing), 2)
    said, asked = (asking(thing, one, rng.choice(text.wordings(one))) for one in (first, second))
    return f"{said} {asked.prompt}"


def _strangers(world: Realm, rng: random.Random) -> Iterator[Thing]:
    """Strangers whom no edit concerns."""
    return filter(_is_aside, world.strangers(rng))


def _outsiders(world: Realm, known: Sequence[Thing], rng: random.Random) -> Iterator[Thing]:
    """Known things and strangers whom no edit concerns."""
    strangers = _strangers(world, rng)
    while True:
        yield rng.choice(known) if rng.random() < 0.3 else next(strangers)


def _quarters(world: Realm, split: Split) -> list[Thing]:
    return [thing for number, thing in enumerate(world.all_known) if number % 4 in KNOWN[split]]


def _is_aside(thing: Thing) -> bool:
    """Whether a stranger is one of those whom no edit concerns: by the name, for two streams may draw the same."""
    return zlib.crc32(thing.name.encode()) % ASIDE == 0


def _checked(split: Split) -> Split:
    if split not in KNOWN:
        raise DataError(f"the realm has no split {split!r}: wanted one of {', '.join(KNOWN)}")
    return split
