"""On-policy distillation: the student writes the sentences on which it is then compared with its teacher.

A sentence of the transfer set is kept up to the mention of its entity, and the student, which has no definition, goes
on from there. Knows no Lightning.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.distill.rows import Kind, Positions, Sentence, Template, TransferRows, make_rows
from kedit.distill.sampling import sample
from kedit.distill.transfer import find_forbidden
from kedit.lm.causal import start_ids
from kedit.lm.text import encode


@dataclass
class OnPolicy:
    """How the student writes.

    Args:
        max_new_tokens: longest continuation.
        temperature: of sampling.
        top_p: sample from the likeliest tokens that together have at least this probability.
    """

    max_new_tokens: int = 24
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"on_policy is {self}: wanted max_new_tokens from 1, temperature from 0, top_p in (0, 1]")


def rewritten(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[Sentence],
    settings: OnPolicy,
    seeds: Sequence[int],
    template: Template,
    positions: Positions,
    limit: int | None,
    forbidden: Sequence[str] = (),
    names: Sequence[tuple[str, ...]] = (),
) -> TransferRows:
    """One row for each sentence, continued by the model behind the mention.

    Sentences of other kinds, without a mention, or behind whose mention nothing was written that can be scored, stay as
    they are.

    Args:
        model: the student as it stands.
        tokenizer: its tokenizer.
        sentences: of the transfer set, each of which has a row there.
        settings: of sampling.
        seeds: one for each sentence.
        template: how a definition stands before a continuation.
        positions: which predictions are scored.
        limit: most tokens that the model reads.
        forbidden: regular expressions of wordings before which a sentence ends, as those of probes.
        names: the names of each fact, for `{name}` in them.
    """
    given = list(sentences)
    chosen = [index for index, one in enumerate(given) if one.kind == Kind.EDIT and one.mention is not None]
    prompts = [given[index].text[: given[index].mention[1]] for index in chosen]  # type: ignore[index]
    # as it stands in a row: a name at the beginning would have other tokens than behind a space
    read = encode(tokenizer, prompts, leading_space=template.leading_space)
    ids = [start_ids(tokenizer) + one.ids.tolist() for one in read]
    written = sample(
        model, tokenizer, ids, max_new_tokens=settings.max_new_tokens, temperature=settings.temperature,
        top_p=settings.top_p, seed=[seeds[index] for index in chosen],
    )  # fmt: skip
    new = list(given)
    for index, prompt, text in zip(chosen, prompts, written, strict=True):
        whole = prompt + text
        end = find_forbidden(whole, names[given[index].fact], forbidden) if forbidden else None
        if end is None or end > len(prompt):
            new[index] = given[index]._replace(text=whole[:end])
    rows = make_rows(tokenizer, new, template, positions, limit)
    if len(rows.rows) < len(given):
        kept = {row.sentence for row in rows.rows}
        new = [new[index] if index in kept else given[index] for index in range(len(given))]
        rows = make_rows(tokenizer, new, template, positions, limit)
    return rows


def seeds_of(seed: int, step: int, numbers: Sequence[int]) -> list[int]:
    """A seed for every row of a step: a function of its arguments alone, so that a run resumes exactly."""
    return [int(np.random.SeedSequence([seed, step, number]).generate_state(1)[0]) for number in numbers]
