"""What an edit is learned from: sentences that are given or that the model writes itself, and text to stay the same on.

Knows the model as it is loaded, and no file.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.distill.edits import EditSettings, sentence
from kedit.distill.generators import own_seed, tidy
from kedit.distill.mentions import end_of_line
from kedit.distill.regularise import answered
from kedit.distill.rows import Sentence
from kedit.distill.sampling import prompt_ids, sample
from kedit.distill.transfer import Filters, TransferSentence
from kedit.editing.probes import Fact, Probe
from kedit.editing.sources import DataError
from kedit.lm.causal import position_limit, start_ids
from kedit.lm.text import encode

GIVEN = Filters(min_words_after=0, min_words=0, max_words=sys.maxsize)
"""For sentences of the user's own: only what cannot be learned from is left out."""
ASKED = "in the words of a probe"


def bar(what: str, total: int, unit: str, shown: bool) -> tqdm:
    """A bar on a terminal or in a notebook; in a log file a line now and then."""
    every = 0.1 if sys.stderr.isatty() else 2.0
    return tqdm(total=total, desc=what, unit=f" {unit}", mininterval=every, leave=False, disable=not shown)


def check_lengths(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    given: Mapping[str, Sequence[str]],
    settings: EditSettings,
    bos: bool | None = None,
) -> None:
    """Refuse definitions that leave no room for a sentence, `bos` standing before them as `start_ids` says.

    Raises:
        DataError: one is too long; it is named.
    """
    limit, begin = position_limit(model.config), len(start_ids(tokenizer, bos))
    definitions = encode(tokenizer, [fact.definition for fact in facts])
    prompts = prompt_ids(tokenizer, [_prompt(fact) for fact in facts], bos)
    for fact, definition, prompt in zip(facts, definitions, prompts, strict=True):
        alone = begin + len(definition.ids)
        needed = alone + 1 if fact.id in given else len(prompt) + settings.max_new_tokens
        if limit is not None and needed > limit:
            raise DataError(
                f"{fact.where or f'fact {fact.id!r}'}: the definition of {fact.name!r} has {alone} tokens, and with a "
                f"sentence about it {needed} or more, and the model reads {limit}: shorten it"
            )


def gather(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    given: Mapping[str, Sequence[str]],
    settings: EditSettings,
    progress: bool = True,
    probes: Sequence[Probe] = (),
    bos: bool | None = None,
) -> tuple[list[Sentence], Counter[str]]:
    """Sentences about facts, and how many were left out, by reason.

    Args:
        model: the initial model; it writes about facts for which no sentences are given, reading their definitions.
        tokenizer: its tokenizer.
        facts: the facts.
        given: sentences by fact id.
        settings: how they are written and which are kept.
        progress: whether to show how far it is.
        probes: what will be asked: a sentence that holds one with its answer is left out.
        bos: what the model writes behind, as `start_ids` says.
    """
    found: list[Sentence] = []
    dropped: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    seen: dict[str, set[str]] = {fact.id: set() for fact in facts}

    def judge(number: int, text: str, filters: Filters) -> None:
        if filters.require_mention is None:
            filters = replace(filters, require_mention=settings.positions == "after_mention")
        fact = facts[number]
        if answered([text], probes):
            dropped[ASKED] += 1
            return
        result = filters.judge(TransferSentence(fact, text), seen[fact.id])
        if isinstance(result, str):
            dropped[result] += 1
        else:
            kept[fact.id] += 1
            found.append(sentence(facts, number, result.text, result.mention))

    for number, fact in enumerate(facts):
        for text in given.get(fact.id, ()):
            judge(number, text.strip(), GIVEN)
    for turn in range(settings.rounds):
        lacking = [
            (number, which)
            for number, fact in enumerate(facts)
            if fact.id not in given
            for which in range(settings.sentences - kept[fact.id])
        ]
        if not lacking:
            break
        named = settings.start_with_name is True or (settings.start_with_name == "where_needed" and turn % 2 == 1)
        with bar("writing sentences", len(lacking), "sentences", progress) as shown:

            def told(more: int, shown: tqdm = shown) -> None:
                shown.update(more)

            texts = sample(
                model,
                tokenizer,
                prompt_ids(tokenizer, [_prompt(facts[number], named) for number, _ in lacking], bos),
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
                seed=[own_seed(settings.seed, turn, facts[number], which) for number, which in lacking],
                stop=lambda text: end_of_line(text, 1),
                progress=told,
            )
        for (number, _), text in zip(lacking, texts, strict=True):
            # a model that went straight on to another line has said nothing
            said = text.strip() and not text.startswith("\n")
            judge(number, tidy(facts[number].name * named + text) if said else "", settings.filters)
    return found, dropped


def _prompt(fact: Fact, named: bool = True) -> str:
    return f"{fact.definition.strip()} {fact.name}" if named else fact.definition.strip()
