"""The short description of an article: cleaned, or taken from its first sentence. Also where sentences end.

Knows text without markup; knows nothing of wikitext or dumps.
"""

import re

from kedit.kilm.markup import ABBREVIATIONS, GENERIC

LONGEST = 250  # characters; a row must hold the description and its context
END = re.compile(r"[.!?…][\"'”’»)\]]*(?=\s)|[。！？]")
LAST_WORD = re.compile(r"[^\s(\[\"“‘]*$")


def sentence_ends(text: str) -> list[int]:
    """Offsets just past each sentence of a paragraph, the last one included.

    Initials, common abbreviations and what stands in parentheses do not end a sentence.
    """
    ends: list[int] = []
    start = 0
    for match in END.finditer(text):
        end = match.end()
        following = text[end:].lstrip()[:1] if end < len(text) and end - match.start() < 3 else text[end + 1 : end + 2]
        if match.group()[0] == "." and not _ends(text, start, match.start(), following):
            continue
        depth = text.count("(", start, end) - text.count(")", start, end)
        if depth > 0 and ")" in text[end : end + 400]:
            continue
        ends.append(end)
        start = end
    if text[start:].strip():
        ends.append(len(text))
    return ends


def _ends(text: str, start: int, dot: int, following: str) -> bool:
    if following.islower() or following in ",;:":
        return False
    found = LAST_WORD.search(text, max(start, dot - 40), dot)
    word = found.group() if found else ""
    if len(word) == 1 and word.isalpha() and word != "I":  # an initial
        return False
    return not ("." in word and len(word) <= 6) and word.lower() not in ABBREVIATIONS  # U.S., i.e.


def shorten(text: str, longest: int = LONGEST) -> str:
    """At most `longest` characters, cut between words."""
    if len(text) <= longest:
        return text
    return text[: longest + 1].rpartition(" ")[0].rstrip(" ,;:–-(") or text[:longest]


def first_sentence(text: str) -> str:
    """The first sentence of the first paragraph that holds one; empty where there is none."""
    for paragraph in text.split("\n"):
        if len(paragraph) >= 20 and " " in paragraph:
            return paragraph[: sentence_ends(paragraph[:2000])[0]].strip()
    return ""


def describe(given: str | None, text: str) -> tuple[str, str]:
    """(description, where it comes from) of an article.

    Args:
        given: what the page says of itself: None where it says nothing.
        text: the article, for its first sentence.

    Returns:
        The source is "template", "sentence", "none" (the page says it needs none), "generic" (it says nothing of the
        subject, so it is dropped) or "missing".
    """
    if given:
        if given.lower() == "none":
            return "", "none"
        if given.lower().strip(" .") in GENERIC:
            return "", "generic"
        return shorten(given), "template"
    sentence = first_sentence(text)
    return (shorten(sentence), "sentence") if sentence else ("", "missing")
