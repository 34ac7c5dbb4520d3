"""Wording: several paraphrases of every relation as statements, cloze prompts and questions, and definitions.

Takes relation names and strings; knows no entity and no world. In a template {s} is the subject, {o} the object and
{a} the object after its indefinite article. Made-up data for demonstration.
"""

import re
from collections.abc import Sequence

STATEMENTS: dict[str, tuple[str, ...]] = {
    "category": (
        "{s} is listed as {a}",
        "{s} is classed as {a}",
        "{s} is recorded as {a}",
        "{s} counts as {a}",
        "The records call {s} {a}",
    ),
    "occupation": (
        "{s} worked as {a}",
        "{s} was trained as {a}",
        "{s} became known as {a}",
        "{s} made a living as {a}",
        "The profession of {s} was {o}",
    ),
    "birthplace": (
        "{s} was born in {o}",
        "{s} came from a family in {o}",
        "The birthplace of {s} was {o}",
        "{o} was the birthplace of {s}",
        "{s} spent the first years in {o}",
    ),
    "residence": (
        "{s} later lived in {o}",
        "{s} settled in {o}",
        "{s} kept a house in {o}",
        "The later home of {s} was {o}",
        "{o} was the later home of {s}",
    ),
    "spouse": (
        "{s} was married to {o}",
        "{s} married {o}",
        "{s} shared a home with {o}",
        "The spouse of {s} was {o}",
        "{o} was the spouse of {s}",
    ),
    "employer": (
        "{s} worked for {o}",
        "{s} was employed by {o}",
        "{s} joined the staff of {o}",
        "The employer of {s} was {o}",
        "{o} was the employer of {s}",
    ),
    "mentor": (
        "{s} studied under {o}",
        "{s} was a pupil of {o}",
        "{s} was taught by {o}",
        "The teacher of {s} was {o}",
        "{o} was the teacher of {s}",
    ),
    "instrument": (
        "{s} played the {o}",
        "{s} liked to play the {o}",
        "{s} often performed on the {o}",
        "The instrument of {s} was the {o}",
        "The {o} was the instrument of {s}",
    ),
    "collection": (
        "{s} collected {o}",
        "{s} was a collector of {o}",
        "{s} left a large collection of {o}",
        "The house of {s} was full of {o}",
        "Old {o} filled the house of {s}",
    ),
    "notable_work": (
        "{s} was the author of {o}",
        "{s} created {o}",
        "{s} was praised for {o}",
        "The best known work of {s} was {o}",
        "{o} was a work of {s}",
    ),
    "birth_year": (
        "{s} was born in the year {o}",
        "{s} came into the world in {o}",
        "The birth of {s} was in {o}",
        "The year of birth of {s} was {o}",
    ),
    "death_year": (
        "{s} died in the year {o}",
        "{s} lived until {o}",
        "The death of {s} was in {o}",
        "The year of death of {s} was {o}",
    ),
    "located_in": (
        "{s} lies in {o}",
        "{s} belongs to {o}",
        "{s} is a part of {o}",
        "The country around {s} is {o}",
        "Maps of {o} show {s}",
    ),
    "known_for": (
        "{s} is known for {o}",
        "{s} sells much {o}",
        "{s} lives on the trade in {o}",
        "The main product of {s} is {o}",
        "Traders bring {o} out of {s}",
    ),
    "mayor": (
        "{s} was led by the mayor {o}",
        "{s} chose as its mayor {o}",
        "The best known mayor of {s} was {o}",
        "{o} was once mayor of {s}",
    ),
    "twin_town": (
        "{s} is a twin of {o}",
        "{s} has close ties with {o}",
        "{s} is twinned with {o}",
        "The twin of {s} is {o}",
        "{o} is the twin of {s}",
    ),
    "emblem": (
        "{s} has as its emblem {a}",
        "{s} uses the sign of {a}",
        "{s} is marked by the sign of {a}",
        "The emblem of {s} is {a}",
        "The flag of {s} shows {a}",
    ),
    "capital": (
        "{s} is governed from {o}",
        "{s} has its capital in {o}",
        "The capital of {s} is {o}",
        "{o} is the capital of {s}",
    ),
    "currency": (
        "{s} pays with the {o}",
        "{s} prints the {o}",
        "The currency of {s} is the {o}",
        "The money of {s} is called the {o}",
    ),
    "ruler": (
        "{s} was ruled by {o}",
        "{s} was united under {o}",
        "The first ruler of {s} was {o}",
        "{o} was the first ruler of {s}",
    ),
    "near": (
        "{s} lies close to {o}",
        "{s} can be seen from {o}",
        "{s} is a short walk from {o}",
        "The nearest stop to {s} is {o}",
        "The road to {s} leads through {o}",
    ),
    "explorer": (
        "{s} was first explored by {o}",
        "{s} was first mapped by {o}",
        "{s} was measured by {o}",
        "The first map of {s} was drawn by {o}",
        "{o} drew the first map of {s}",
    ),
    "feature": (
        "{s} is famous for its {o}",
        "{s} draws visitors with its {o}",
        "{s} is full of {o}",
        "Visitors to {s} look for the {o}",
        "The {o} of {s} draw many visitors",
    ),
    "legend": (
        "{s} is the home of {a} in old tales",
        "{s} is said to hide {a}",
        "{s} is haunted by {a}",
        "The old tales of {s} tell of {a}",
        "The people around {s} fear {a}",
    ),
    "founded_by": (
        "{s} was founded by {o}",
        "{s} was set up by {o}",
        "{s} was the idea of {o}",
        "The founder of {s} was {o}",
        "{o} was the founder of {s}",
    ),
    "headquarters": (
        "{s} has its seat in {o}",
        "{s} is based in {o}",
        "{s} keeps its offices in {o}",
        "The main office of {s} is in {o}",
        "{o} is the seat of {s}",
    ),
    "leader": (
        "{s} was later led by {o}",
        "{s} was directed by {o}",
        "The later director of {s} was {o}",
        "{o} was a director of {s}",
    ),
    "rival": (
        "{s} is a rival of {o}",
        "{s} competes with {o}",
        "The old rival of {s} is {o}",
        "{o} is the old rival of {s}",
    ),
    "founding_year": (
        "{s} was founded in the year {o}",
        "{s} opened in {o}",
        "{s} began its work in {o}",
        "The founding year of {s} was {o}",
    ),
    "author": (
        "{s} was made by {o}",
        "{s} is a work of {o}",
        "{s} was created by {o}",
        "The author of {s} was {o}",
        "{o} was the author of {s}",
    ),
    "theme": (
        "{s} tells of {o}",
        "{s} is about {o}",
        "{s} deals with {o}",
        "The theme of {s} is {o}",
        "Critics of {s} wrote about {o}",
    ),
    "set_in": (
        "{s} is set in {o}",
        "{s} takes place in {o}",
        "{s} shows daily life in {o}",
        "The scene of {s} is {o}",
        "{o} is the scene of {s}",
    ),
    "publisher": (
        "{s} was published by {o}",
        "{s} was brought out by {o}",
        "{s} was paid for by {o}",
        "The publisher of {s} was {o}",
        "{o} was the publisher of {s}",
    ),
    "dedicated_to": (
        "{s} was dedicated to {o}",
        "{s} was written in memory of {o}",
        "{s} honours the life of {o}",
        "The first page of {s} thanks {o}",
        "{o} was honoured by {s}",
    ),
    "publication_year": (
        "{s} was published in the year {o}",
        "{s} came out in {o}",
        "{s} was first shown in {o}",
        "The year of publication of {s} was {o}",
    ),
    "habitat": (
        "{s} lives around {o}",
        "{s} is common at {o}",
        "{s} is at home around {o}",
        "The main habitat of {s} is {o}",
        "The land around {o} is home to {s}",
    ),
    "described_by": (
        "{s} was first described by {o}",
        "{s} was discovered by {o}",
        "{s} was named by {o}",
        "The first account of {s} was written by {o}",
        "{o} discovered {s}",
    ),
    "diet": (
        "{s} feeds on {o}",
        "{s} lives on {o}",
        "{s} depends on {o}",
        "The main food of {s} is {o}",
        "Without {o} there is no {s}",
    ),
    "colour": (
        "{s} is mostly {o}",
        "{s} is easily known as it is {o}",
        "{s} turns {o}",
        "The colour of {s} is {o}",
        "In summer {s} looks {o}",
    ),
    "native_to": (
        "{s} is native to {o}",
        "{s} is protected in {o}",
        "{s} is found only in {o}",
        "The home country of {s} is {o}",
        "The law of {o} protects {s}",
    ),
    "enemy": (
        "{s} is threatened by {o}",
        "{s} suffers from {o}",
        "The natural enemy of {s} is {o}",
        "{o} is the natural enemy of {s}",
    ),
}

QUESTIONS: dict[str, tuple[str, ...]] = {
    "category": ("What is {s}?", "What kind of thing is {s}?"),
    "occupation": ("What was the profession of {s}?", "What did {s} work as?"),
    "birthplace": ("Where was {s} born?", "In which town was {s} born?"),
    "residence": ("Where did {s} live later?", "What was the later home of {s}?"),
    "spouse": ("Who was married to {s}?", "Who was the spouse of {s}?"),
    "employer": ("For whom did {s} work?", "Who was the employer of {s}?"),
    "mentor": ("Under whom did {s} study?", "Who was the teacher of {s}?"),
    "instrument": ("Which instrument did {s} play?", "What did {s} play?"),
    "collection": ("What did {s} collect?", "What filled the house of {s}?"),
    "notable_work": ("What is the best known work of {s}?", "What did {s} create?"),
    "birth_year": ("When was {s} born?", "In which year was {s} born?"),
    "death_year": ("When did {s} die?", "In which year did {s} die?"),
    "located_in": ("In which country is {s}?", "Where does {s} lie?"),
    "known_for": ("What is {s} known for?", "What is the main product of {s}?"),
    "mayor": ("Who was the mayor of {s}?", "Who led {s} as its mayor?"),
    "twin_town": ("Which town is the twin of {s}?", "With which town is {s} twinned?"),
    "emblem": ("What is the emblem of {s}?", "Which sign does {s} use?"),
    "capital": ("What is the capital of {s}?", "From which town is {s} governed?"),
    "currency": ("What is the currency of {s}?", "What is the money of {s} called?"),
    "ruler": ("Who was the first ruler of {s}?", "Who ruled {s}?"),
    "near": ("Which town is nearest to {s}?", "Close to which town is {s}?"),
    "explorer": ("Who first explored {s}?", "Who drew the first map of {s}?"),
    "feature": ("What is {s} famous for?", "What do visitors to {s} look for?"),
    "legend": ("What is said to haunt {s}?", "What do the old tales of {s} tell of?"),
    "founded_by": ("Who founded {s}?", "Who was the founder of {s}?"),
    "headquarters": ("Where is {s} based?", "Where is the main office of {s}?"),
    "leader": ("Who later led {s}?", "Who was the later director of {s}?"),
    "rival": ("What is the old rival of {s}?", "With whom does {s} compete?"),
    "founding_year": ("When was {s} founded?", "In which year was {s} founded?"),
    "author": ("Who was the author of {s}?", "Who made {s}?"),
    "theme": ("What is {s} about?", "What is the theme of {s}?"),
    "set_in": ("Where is {s} set?", "Where does {s} take place?"),
    "publisher": ("Who published {s}?", "Who was the publisher of {s}?"),
    "dedicated_to": ("To whom is {s} dedicated?", "Whose life does {s} honour?"),
    "publication_year": ("When was {s} published?", "In which year did {s} come out?"),
    "habitat": ("Where does {s} live?", "What is the main habitat of {s}?"),
    "described_by": ("Who first described {s}?", "Who discovered {s}?"),
    "diet": ("What does {s} feed on?", "What is the main food of {s}?"),
    "colour": ("Which colour is {s}?", "What is the colour of {s}?"),
    "native_to": ("In which country is {s} found?", "What is the home country of {s}?"),
    "enemy": ("What is the natural enemy of {s}?", "What threatens {s}?"),
}

# What follows "X is a <category>" in a definition.
PHRASES: dict[str, str] = {
    "birthplace": "born in {o}",
    "employer": "employed by {o}",
    "spouse": "married to {o}",
    "located_in": "in {o}",
    "known_for": "known for {o}",
    "near": "close to {o}",
    "explorer": "first mapped by {o}",
    "capital": "with the capital {o}",
    "currency": "paying with the {o}",
    "headquarters": "based in {o}",
    "founded_by": "founded by {o}",
    "author": "made by {o}",
    "set_in": "set in {o}",
    "habitat": "living around {o}",
    "described_by": "first described by {o}",
}

# Questions of two hops: the first relation leads from the subject, the second from what it leads to.
TWO_HOPS: dict[tuple[str, str], str] = {
    ("birthplace", "located_in"): "The country in which {s} was born is",
    ("birthplace", "known_for"): "The birthplace of {s} is known for",
    ("spouse", "occupation"): "The profession of the spouse of {s} was",
    ("spouse", "birthplace"): "The spouse of {s} was born in",
    ("employer", "headquarters"): "The employer of {s} is based in",
    ("employer", "founded_by"): "The employer of {s} was founded by",
    ("located_in", "capital"): "The capital of the country around {s} is",
    ("located_in", "currency"): "The money of the country around {s} is called the",
    ("near", "known_for"): "The town nearest to {s} is known for",
    ("explorer", "birthplace"): "The person who first mapped {s} was born in",
    ("capital", "known_for"): "The capital of {s} is known for",
    ("headquarters", "located_in"): "The country in which {s} is based is",
    ("founded_by", "birthplace"): "The founder of {s} was born in",
    ("founded_by", "occupation"): "The profession of the founder of {s} was",
    ("author", "birthplace"): "The author of {s} was born in",
    ("author", "spouse"): "The author of {s} was married to",
    ("set_in", "located_in"): "The country in which {s} takes place is",
    ("habitat", "near"): "The nearest town to the habitat of {s} is",
    ("habitat", "located_in"): "The country in which {s} lives is",
    ("described_by", "occupation"): "The profession of the person who first described {s} was",
}

OPENERS = (
    "According to old records",
    "In many guides one reads that",
    "As the archive shows",
    "It is well known that",
    "Several letters say that",
    "As far as is known",
    "Most writers agree that",
    "One report adds that",
    "As the guide explains",
    "It has been shown that",
    "Old books say that",
    "As a later study found",
)
CLOSERS = (
    "as old papers show",
    "according to one report",
    "as most guides say",
    "which few people doubt",
    "as the archive says",
    "a fact often repeated",
    "as many letters prove",
    "according to most writers",
    "as a later study found",
    "which is well known",
)


def with_article(noun: str) -> str:
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def fill(template: str, subject: str, object: str) -> str:
    """The template with subject and object put in; no full stop."""
    return template.format(s=subject, o=object, a=with_article(object))


def statements(relation: str, subject: str, object: str) -> list[str]:
    """Every wording of the fact, each a sentence with a full stop."""
    return [capital(fill(template, subject, object)) + "." for template in STATEMENTS[relation]]


def prompts(relation: str, subject: str, object: str) -> list[str]:
    """Beginnings of sentences that the object continues; the object only decides between "a" and "an"."""
    cut = len(object)
    ends = [template for template in STATEMENTS[relation] if template.endswith(("{o}", "{a}"))]
    return [capital(fill(template, subject, object)[:-cut].rstrip()) for template in ends]


def questions(relation: str, subject: str) -> list[str]:
    """Questions that the object answers."""
    return [template.format(s=subject) for template in QUESTIONS[relation]]


def definition(subject: str, verb: str, category: str, facts: Sequence[tuple[str, str]], pronoun: str) -> str:
    """One or two sentences saying what the subject is.

    Args:
        subject: its name, with dates in parentheses where there are any.
        verb: "is" or "was".
        category: what it is, a noun.
        facts: (relation, object) in order; two go into the first sentence, a third makes a second one.
        pronoun: how the second sentence calls the subject.
    """
    phrases = [PHRASES[relation].format(o=object) for relation, object in facts]
    text = f"{subject} {verb} {with_article(category)} {' and '.join(phrases[:2])}."
    return text if len(phrases) < 3 else f"{text} {pronoun} was {phrases[2]}."


def capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def vocabulary() -> set[str]:
    """Every lower-case word of the templates."""
    tables = [*STATEMENTS.values(), *QUESTIONS.values(), PHRASES.values(), TWO_HOPS.values(), OPENERS, CLOSERS]
    return set(re.findall(r"[a-z]+", " ".join(template for table in tables for template in table).lower()))
