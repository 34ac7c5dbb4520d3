"""What a base model of the realm knows and reads: shares of answers that greedy decoding finds whole.

Knows no method; asks what `RealmEdits` asks, behind nothing, behind a definition and behind an edit's own sentence.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.lm.text import encode
from kedit.world.realm_edits import RealmEdits

EDITS = 450
BATCH = 64
SORTS = {
    "generality": "told", "generality/new": "told", "portability/one_hop": "one_hop",
    "portability/two_hops": "two_hops", "portability/alias": "alias", "portability/inverse": "inverse",
}  # fmt: skip


def reading(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, known: int, realm: int, asked: int
) -> dict[str, float]:
    """Shares of whole answers, on at most `asked` questions of each sort.

    `known`: facts of known things; `aside_...`: the same behind something of another thing. `alone`: what is told of
    new things, which nothing says. Of new things, `told_...`: another wording of what is said before; `one_hop_...` and
    `two_hops_...`: what follows; `alias_...` and `inverse_...`: see RealmEdits. Before each, ..._defined has the
    definition and ..._edited the edit that it concerns.
    """
    source = RealmEdits("validation", EDITS, seed=1, known=known, realm=realm)
    edits = source.load()
    definitions = {fact.name: fact.definition for fact in source.define(edits)}
    sets: dict[str, list[tuple[str, str]]] = {}

    def ask(name: str, *words: str, answer: str) -> None:
        sets.setdefault(name, []).append((" ".join(words), answer))

    for edit in edits:
        contexts = {"edited": f"{edit.text}."}
        if edit.subject in definitions:
            contexts["defined"] = definitions[edit.subject]
        ask("alone", edit.prompt, answer=edit.target)
        for probe in edit.probes:
            sort = SORTS.get(probe.group)
            if sort is None and probe.span:
                ask("known", probe.prompt, answer=probe.span)
            if not probe.span:
                continue
            for form, context in contexts.items():
                if sort != "inverse" or form == "defined":  # one edit is not all that is told
                    ask(f"{sort or 'aside'}_{form}", context, probe.prompt, answer=probe.span)
    rng = random.Random(0)
    found = {}
    for name in sorted(sets):
        drawn = rng.sample(sets[name], min(asked, len(sets[name])))
        found[f"{name}_accuracy"] = sum(whole_answers(model, tokenizer, *zip(*drawn, strict=True))) / len(drawn)
    return found


def told_of(quality: dict[str, float]) -> str:
    """The most telling of these in a sentence."""
    percent = {name.removesuffix("_accuracy"): f"{100 * share:.0f} %" for name, share in quality.items()}
    return (
        f"{percent['known']} of known facts; of things never seen, {percent['alone']} of facts alone, "
        f"{percent['told_defined']} behind the definition and {percent['told_edited']} behind the fact itself; of what "
        f"follows in one step {percent['one_hop_defined']} and {percent['one_hop_edited']}, in two "
        f"{percent['two_hops_defined']} and {percent['two_hops_edited']}"
    )


@torch.no_grad()
def whole_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str]
) -> list[bool]:
    """Whether greedy decoding writes the answer and a full stop behind each prompt."""
    texts = [f"{prompt} {answer}." for prompt, answer in zip(prompts, answers, strict=True)]
    asked = [(prompt.ids.tolist(), whole.ids[len(prompt.ids) :].tolist())
             for prompt, whole in zip(encode(tokenizer, prompts), encode(tokenizer, texts), strict=True)]  # fmt: skip
    order = sorted(range(len(asked)), key=lambda number: sum(map(len, asked[number])))
    found: dict[int, bool] = {}
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        found.update(zip(batch, _answered(model, tokenizer, [asked[number] for number in batch]), strict=True))
    return [found[number] for number in range(len(asked))]


def _answered(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[tuple[list[int], list[int]]]
) -> list[bool]:
    """With nothing but the likeliest tokens before it, a token that is likeliest is the one that is written."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if model.config.is_encoder_decoder:
        source_BS = _side_by_side([[bos, *read, eos] for read, _ in asked], tokenizer.pad_token_id)
        begun = [model.config.decoder_start_token_id, bos]
        written_BU = _side_by_side([[*begun, *wanted] for _, wanted in asked], tokenizer.pad_token_id)
        mask_BS = (source_BS != tokenizer.pad_token_id).long()
        logits = model(input_ids=source_BS, attention_mask=mask_BS, decoder_input_ids=written_BU).logits
        places = [1] * len(asked)
    else:
        # what stands behind a token changes nothing before it
        ids_BL = _side_by_side([[bos, *read, *wanted] for read, wanted in asked], tokenizer.pad_token_id)
        logits = model(input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL)).logits
        places = [len(read) for read, _ in asked]
    likeliest = logits.argmax(-1).tolist()
    return [row[place : place + len(wanted)] == wanted
            for row, place, (_, wanted) in zip(likeliest, places, asked, strict=True)]  # fmt: skip


def _side_by_side(rows: Sequence[list[int]], pad: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
