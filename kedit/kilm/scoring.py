"""How likely each candidate's knowledge string is in the place of a mention's description.

Contexts are encoded once; all candidates of a context are decoded side by side, as many in a row as positions allow.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.editing.sources import Candidate
from kedit.kilm.infilling import Markup
from kedit.lm.backbones import output_head
from kedit.lm.losses import linear_nll
from kedit.lm.packing import PackedRows, decode, lay_out, row_limit
from kedit.lm.text import encode


def knowledge_strings(
    tokenizer: PreTrainedTokenizerBase, marks: Markup, candidates: Sequence[Candidate], descriptions: bool
) -> list[np.ndarray]:
    """Token ids of `title <sep>`, or of title and description up to where a model stops, for each candidate."""
    stop = marks.masks[1] if marks.family == "t5" else marks.end_ent_desc
    titles = encode(tokenizer, [c.title for c in candidates], leading_space=True)
    texts = encode(tokenizer, [c.description for c in candidates], leading_space=True)
    strings = []
    for candidate, title, text in zip(candidates, titles, texts, strict=True):
        # an empty description is no token, not the leading space alone
        described = [text.ids[: len(text.ids) if candidate.description else 0], [stop]]
        strings.append(np.concatenate([title.ids, [marks.sep], *(described if descriptions else [])]))
    return strings


def candidate_nll(
    model: PreTrainedModel,
    marks: Markup,
    sources: Sequence[np.ndarray],
    states_BSD: Tensor,
    prefixes: Sequence[np.ndarray],
    strings: Sequence[Sequence[np.ndarray]],
) -> list[np.ndarray]:
    """Loss of every candidate's string in its context.

    Args:
        model: BART or T5.
        marks: ids of the structure.
        sources: encoder ids of each context.
        states_BSD: their encoder states.
        prefixes: decoder ids up to where the string begins.
        strings: for each context its candidates' strings.

    Returns:
        for each context the summed loss of each string, in nats.
    """
    limit = row_limit(model)
    if limit is not None:
        # the likelihood of as much of a string as the position table holds
        strings = [[s[: max(1, limit - len(p))] for s in options] for p, options in zip(prefixes, strings, strict=True)]
    rows = [
        (index, group)
        for index, options in enumerate(strings)
        for group in _groups(model, len(prefixes[index]), [len(option) for option in options])
    ]
    layout = [_row(marks, prefixes[index], [(k, strings[index][k]) for k in group]) for index, group in rows]
    reads = [index for index, _ in rows]
    nll, row, candidate = _token_nll(model, marks, sources, states_BSD, reads, layout)
    context = np.array(reads)[row]
    return [
        np.bincount(candidate[context == index], nll[context == index], minlength=len(options))
        for index, options in enumerate(strings)
    ]


def _groups(model: PreTrainedModel, prefix: int, sizes: Sequence[int]) -> list[list[int]]:
    """Candidates that share a row: all of them, or as many as BART's position table holds."""
    limit = row_limit(model) or sum(sizes) + prefix
    groups: list[list[int]] = []
    used = limit
    for number, size in enumerate(sizes):
        if used + size > limit or not groups:
            groups.append([])
            used = prefix
        groups[-1].append(number)
        used += size
    return groups


def _row(marks: Markup, prefix: np.ndarray, options: Sequence[tuple[int, np.ndarray]]) -> list[tuple[np.ndarray, ...]]:
    """One decoder row as documents, each (input, position, branch, target, candidate or -1) by token.

    BART: one document, the candidates being branches of the prefix; the prefix's last token predicts every
    candidate's first, so it heads each branch. T5, whose distances must not change: a document a candidate.
    """
    head, last = prefix[:-1], prefix[-1:]
    at = np.arange(len(head))
    none = np.full(len(head), -1)
    branches = [
        (
            np.concatenate([last, string[:-1]]),
            len(head) + np.arange(len(string)),
            np.full(len(string), place + 1),
            string,
            np.full(len(string), number),
        )
        for place, (number, string) in enumerate(options)
    ]
    trunk = (head, at, np.zeros_like(at), np.zeros_like(at), none)
    if marks.family == "bart":
        return [tuple(np.concatenate(parts) for parts in zip(trunk, *branches, strict=True))]
    return [tuple(np.concatenate(parts) for parts in zip(trunk, branch, strict=True)) for branch in branches]


def _token_nll(
    model: PreTrainedModel,
    marks: Markup,
    sources: Sequence[np.ndarray],
    states_BSD: Tensor,
    reads: Sequence[int],
    layout: Sequence[Sequence[tuple[np.ndarray, ...]]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses of all candidate tokens, with the row and the candidate of each; row r reads source reads[r]."""
    device = model.device
    source, source_document, source_position = lay_out([[sources[index]] for index in reads], marks.pad)
    decoder, document, _ = lay_out([[part[0] for part in row] for row in layout], marks.pad)
    position, branch, target = (lay_out([[part[k] for part in row] for row in layout], 0)[0] for k in (1, 2, 3))
    candidate = lay_out([[part[4] for part in row] for row in layout], -1)[0]
    packed = PackedRows(
        source.to(device),
        source_document.to(device),
        source_position.to(device),
        decoder.to(device),
        document.to(device),
        position.to(device),
        torch.where(document >= 0, 0, -1).to(device),
        branch.to(device) if marks.family == "bart" else None,
    )
    hidden = decode(model, states_BSD[torch.tensor(list(reads), device=device)], packed)
    scored = candidate >= 0
    nll = linear_nll(hidden[scored.to(device)], *output_head(model), target[scored].to(device))
    return nll.double().cpu().numpy(), scored.nonzero()[:, 0].numpy(), candidate[scored].numpy()
