"""Whether a text is fit to be taught or asked: something to read, and nothing that is read unseen. Knows no edits."""

import re

from kedit.editing.problems import BadInput

LONGEST = 20_000
"""Characters of a prompt or target; more is no edit but a document."""
HIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters (tab and line ends apart), overrides of the direction of writing, halves of characters."""


def check_text(text: str, where: str, field: str, may_be_empty: bool = False) -> None:
    """Refuse a text that no edit can have.

    Args:
        text: the text.
        where: file and line, and
        field: the name of its field: for the complaint.
        may_be_empty: whether it may say nothing.

    Raises:
        DataError: it is empty, too long, or holds characters that nobody sees and a model reads.
    """
    if not may_be_empty and not text.strip():
        raise BadInput(where, f"{field!r} is empty", "give it some words, or leave this one out", field)
    if len(text) > LONGEST:
        raise BadInput(
            where,
            f"{field!r} has {len(text):,} characters, wanted {LONGEST:,} at most",
            "an edit is a sentence or a few; cut a document into them",
            field,
        )
    if found := HIDDEN.search(text):
        raise BadInput(
            where,
            f"{field!r} holds the character U+{ord(found[0]):04X} at place {found.start() + 1}, a control"
            " character or one that turns the direction of writing",
            "take it out",
            field,
        )
