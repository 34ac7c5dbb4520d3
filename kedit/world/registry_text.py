"""Word lists, wordings of relations and plain sentences of the registry. Knows no person and no choice.

Every wording is a prompt that its object follows. What each of the three splits alone may use stands here, too.
"""

import re
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

# What a method may train on. A held-out wording shares a word of meaning with these, as paraphrases do.
PROMPTS: dict[str, tuple[str, ...]] = {
    "birthplace": (
        "{s} was born in the town of", "The birthplace of {s} is", "{s} came into the world in",
        "The town where {s} was born is",
    ),
    "employer": (
        "{s} works for", "The employer of {s} is", "{s} earns a salary at", "The company that pays {s} is",
    ),
    "profession": (
        "{s} makes a living as a", "The profession of {s} is that of a", "By trade {s} is a",
        "{s} was trained to be a",
    ),
    "mentor": ("{s} was taught by", "The teacher of {s} was", "{s} was a pupil of", "{s} took lessons from"),
    "instrument": (
        "{s} plays the", "The instrument of {s} is the", "{s} gives concerts on the",
        "In the orchestra {s} plays the",
    ),
    "award": (
        "{s} was awarded the", "The prize that {s} won is the", "{s} received as an honour the",
        "The jury honoured {s} with the",
    ),
    "language": (
        "{s} speaks", "The mother tongue of {s} is", "{s} grew up with the language", "At home {s} talks in",
    ),
    "death": (
        "{s} died in the year", "The year of death of {s} is", "{s} lived until",
        "The grave of {s} bears the year",
    ),
}  # fmt: skip
# Held out from training: those by which a method is tuned, and those by which it is judged.
HELD_OUT: dict[Split, dict[str, str]] = {
    "train": {},
    "validation": {
        "birthplace": "The cradle of {s} stood in the town of",
        "employer": "The salary of {s} is paid by",
        "profession": "The trade that {s} learned is that of a",
        "mentor": "As a pupil {s} listened to",
        "instrument": "At concerts {s} is heard on the",
        "award": "At the ceremony the jury gave {s} the",
        "language": "The language that {s} knows best is",
        "death": "The life of {s} ended in the year",
    },
    "test": {
        "birthplace": "When {s} was born the family lived in",
        "employer": "Every month {s} is paid a salary by",
        "profession": "{s} has learned the profession of a",
        "mentor": "The lessons of {s} were given by the teacher",
        "instrument": "The favourite instrument of {s} is the",
        "award": "The prize on the shelf of {s} is the",
        "language": "As a mother tongue {s} has",
        "death": "The death of {s} came in the year",
    },
}
RELATIONS = tuple(PROMPTS)

# Sentences that no edit concerns, with names and objects in them; the splits share no wording.
# {first} and {last} are parts of names, {town} and so on objects of a relation.
PLAIN: dict[Split, tuple[str, ...]] = {
    "train": (
        "The market of {town} opens at nine.",
        "Rain fell on {town} for a week.",
        "Many children are called {first} these days.",
        "A road runs from {town} to {town2}.",
        "Nobody at {employer} would comment on the news.",
        "Is it far from {town} to {town2}?",
        "What does a good {instrument} cost?",
        "The {last} family sold its house near {town}.",
        "Books in {language} are hard to find.",
        "How many people work for {employer}?",
        "A young {profession} asked for the way to the station.",
        "In {year} the harvest was poor.",
        "Who wrote the history of {town}?",
        "She put the {instrument} back into its case.",
        "Nobody has heard of the {award} for years.",
        "What is the weather like in {town} today?",
    ),
    "validation": (
        "Trains to {town} leave every hour.",
        "Fire destroyed a warehouse of {employer} in {year}.",
        "How does one tune a {instrument}?",
        "Old Mrs {last} keeps three cats.",
        "Which bridge leads out of {town}?",
        "Few schools teach {language} now.",
        "A letter addressed to {first} came back unopened.",
        "When was {employer} founded?",
        "The mayor of {town} opened a library in {year}.",
        "Every {profession} needs patience.",
        "Does {town} have a river?",
        "The ceremony of the {award} was cancelled.",
    ),
    "test": (
        "Snow closed the pass above {town} in {year}.",
        "Shares of {employer} rose again.",
        "Where can one repair a {instrument}?",
        "The twins {first} and {first2} share a room.",
        "Can you translate this poem into {language}?",
        "A tall {profession} crossed the square of {town}.",
        "Which ships sail to {town2} from {town}?",
        "The {last} brothers argue about a fence.",
        "Why did {employer} close its office in {town}?",
        "What colour is the ribbon of the {award}?",
        "An earthquake shook the coast in {year}.",
        "How old is the castle of {town}?",
    ),
}
SLOTS = {
    "town": "birthplace", "town2": "birthplace", "employer": "employer", "profession": "profession",
    "instrument": "instrument", "award": "award", "language": "language", "year": "death",
}  # fmt: skip


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TOWNS = ("{w}", "{w}", "{w}", "Port {w}", "New {w}", "{w} Bridge")
EMPLOYERS = ("{w} Bank", "Bank of {w}", "{w} and Sons", "United {w}", "{w} Shipping Lines", "Royal {w} Mills")
LANGUAGES = ("{w}", "{w}", "{w}", "Old {w}", "High {w}", "Low {w}")
AWARDS = ("Order of the {adjective} {animal}", "{adjective} {animal} Prize")
ADJECTIVES = _words("Golden Silver Crimson Azure Flying Sleeping Northern Ancient Noble Brave")
ANIMALS = _words("Heron Falcon Lion Dolphin Stag Raven Otter Swan Badger Lynx Crane Bison")
CRAFTS = _words(
    "painter poet dancer sailor doctor judge baker tailor miner printer farmer weaver gardener lawyer barber butcher"
    " carpenter diver fisherman goldsmith hunter jeweller librarian merchant nurse pilot potter surgeon tanner vintner"
)
GOODS = _words("glass clock bridge rope paper salt lamp wagon carpet bell")
MAKERS = ("{w} maker", "{w} dealer", "{w} inspector")
INSTRUMENTS = _words(
    "harp flute viola cello trumpet lute drum bassoon clarinet fiddle zither mandolin guitar piccolo tuba banjo"
    " dulcimer gong lyre piano"
)
SORTS = ("{w}", "steel {w}", "double {w}")


def prompts(relation: str, split: Split | None = None) -> tuple[str, ...]:
    """Wordings of a relation: what training may use, and what is held out for the split; without a split all."""
    held = [HELD_OUT[one][relation] for one in SPLITS[1:] if split in (None, one)]
    return (*PROMPTS[relation], *held)


def vocabulary() -> set[str]:
    """Every word of the lists, in lower case: what no coined name may be."""
    texts = [text for relation in RELATIONS for text in prompts(relation)]
    texts += [text for sentences in PLAIN.values() for text in sentences]
    texts += [*TOWNS, *EMPLOYERS, *LANGUAGES, *AWARDS, *ADJECTIVES, *ANIMALS, *CRAFTS, *GOODS, *MAKERS, *INSTRUMENTS]
    return set(re.findall(r"[a-z]+", " ".join([*texts, *SORTS]).lower()))
