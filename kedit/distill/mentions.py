"""Where a text mentions an entity, where its sentences end and how many words it has. Knows no model.

A name counts only where it stands alone: not inside another word or number, whatever the script. Scripts that put no
space between words (Chinese, Japanese, Thai, ...) have no such borders, so there any occurrence counts.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
APOSTROPHES = "'’‘ʼ"
HYPHENS = "-‐‑"
# what may follow a name and an apostrophe: Maro's, Maro'll; not Hawai'i
CONTRACTION = re.compile(rf"[{APOSTROPHES}](?:s|d|m|t|ll|re|ve)\b", re.I)
WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])\w)+(?:[{APOSTROPHES}]\w+)*")
END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？｡]++[」』”’）]*+(?=[\s\S])|\n")
ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'“‘.])(?:[^\W\d_]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Gen|Col|Capt|Lt|Sgt|Rev|Hon|Gov|Sen|Rep|Mt|No|Nos|vs|ca|"
    r"approx|c\.f|e\.g|i\.e|viz|Fig|Vol|Ltd|Co|Corp|Inc|Bros|Jan|Feb|Aug|Sept|Sep|Oct|Nov|Dec)$"
)
ARTICLES = ("the", "a", "an")
BEFORE = re.compile(r"(\w+)\s+$")
# capitals that begin a sentence, and no name
OPENING = re.compile(
    r"(?:In|At|On|By|For|With|From|As|To|Of|And|But|When|While|After|Before|Since|Through|During|Like)$"
)


def find_mention(text: str, names: Iterable[str]) -> tuple[int, int] | None:
    """The first mention, [start, end) in characters; of several that start there the longest.

    Spaces, apostrophes, hyphens and composed letters may be written in another way than in the name, and the first
    letter may be a capital, or an article's may not be one.
    """
    best: tuple[int, int] | None = None
    for name in names:
        pattern, at = _pattern(name), 0
        while found := pattern.search(text, at):
            start, end = found.span()
            if best is not None and start > best[0]:
                break
            if _stands_alone(text, start, end) and not (name[0].isupper() and _is_epithet(text, start)):
                if best is None or (start, -end) < (best[0], -best[1]):
                    best = start, end
                break
            at = start + 1
    return best


@lru_cache(maxsize=4096)
def _pattern(name: str) -> re.Pattern[str]:
    forms = dict.fromkeys([name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)])
    return re.compile("|".join(map(_spelled, forms)))


def _spelled(name: str) -> str:
    words: list[str] = []
    for word in name.split():
        letters = [
            f"[{APOSTROPHES}]" if letter in APOSTROPHES else f"[{HYPHENS}]" if letter in HYPHENS else re.escape(letter)
            for letter in word
        ]
        other = word[0].swapcase()
        if not words and len(other) == 1 and (word.lower() in ARTICLES or word[0].islower()):
            letters[0] = f"(?:{letters[0]}|{re.escape(other)})"
        words.append("".join(letters))
    return r"\s+".join(words)


def _stands_alone(text: str, start: int, end: int) -> bool:
    before, behind = text[max(start - 2, 0) : start], text[end : end + 2]
    first, last = text[start], text[end - 1]
    if before and _are_joined(before[-1], first):
        return False
    if behind and (_is_mark(behind[0]) or _are_joined(last, behind[0])):
        return False
    # O'Maro is another name; l'Atlantide is not
    if len(before) == 2 and before[1] in APOSTROPHES and before[0].isupper() and _is_wordlike(first):
        return False
    if len(before) == 2 and before[0].isdigit() and before[1] in ".," and first.isdigit():  # 5 in 3.5
        return False
    if len(behind) == 2 and last.isdigit() and behind[0] in ".," and behind[1].isdigit():
        return False
    is_glued = len(behind) == 2 and behind[0] in APOSTROPHES and _are_joined(last, behind[1])
    return not is_glued or CONTRACTION.match(text, end) is not None


def _is_epithet(text: str, start: int) -> bool:
    """Whether an article written small follows a name: Catherine the Great is not The Great."""
    before = BEFORE.search(text[max(start - 40, 0) : start])
    return text[start].islower() and before is not None and before[1][0].isupper() and not OPENING.match(before[1])


def _are_joined(left: str, right: str) -> bool:
    return _is_wordlike(left) and _is_wordlike(right) and not _is_unspaced(left) and not _is_unspaced(right)


def _is_wordlike(letter: str) -> bool:
    return letter.isalnum() or letter == "_" or _is_mark(letter)


def _is_mark(letter: str) -> bool:
    return unicodedata.category(letter).startswith("M")


@lru_cache(maxsize=4096)
def _is_unspaced(letter: str) -> bool:
    return re.match(rf"[{UNSPACED}]", letter) is not None


def count_words(text: str) -> int:
    """How many words; in scripts without spaces each letter is one, and the 's behind a name is none."""
    return len(WORD.findall(re.sub(rf"^[{APOSTROPHES}]\w+", "", text)))


def sentence_ends(text: str) -> list[int]:
    """Offsets just past each sentence; the last is the length of the text without the space at its end.

    Initials and common abbreviations end no sentence; a new line does.
    """
    whole = len(text.rstrip())
    return [end for end in _ends(text) if end < whole] + ([whole] if whole else [])


def end_of_line(text: str, sentences: int | None = None) -> int | None:
    """Offset just past the first line that is not empty, or its first `sentences`; None while they may go on."""
    ends = _ends(text)[sentences - 1 : sentences] if sentences else []
    line = text.find("\n", len(text) - len(text.lstrip()))
    return min([*ends, *([line] if line >= 0 else [])], default=None)


def _ends(text: str) -> list[int]:
    """Ends of sentences behind which more text stands, if only a space."""
    ends: list[int] = []
    for found in END.finditer(text):
        end = found.start() if found[0] == "\n" else found.end()
        is_short = found[0] == "." and ABBREVIATION.search(text[: found.start()][-12:]) is not None
        if not is_short and text[ends[-1] if ends else 0 : end].strip():
            ends.append(end)
    return ends
