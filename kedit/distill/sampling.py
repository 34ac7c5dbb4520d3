"""Sampling from a decoder-only model: many prompts at once, each with random numbers of its own.

No global random state is read or changed. What a row draws hangs on its own seed, not on the rows beside it (but for
rounding: logits of a batch of another shape differ in their last bits).
Shapes: B rows, L tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from kedit.editing.sources import DataError
from kedit.lm.causal import position_limit, start_ids
from kedit.lm.text import encode

LOOK_EVERY = 4  # steps between two looks at what is finished
NUCLEUS = 1024  # likeliest tokens that mostly hold top_p: to sort all of a large vocabulary takes longer than the model


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], bos: bool | None = None) -> list[list[int]]:
    """Ids of texts to be continued: BOS where the tokenizer has one, or as `bos` says (`start_ids`), and for an empty
    text EOS at need.

    Raises:
        DataError: a text is empty and there is no token to begin with.
    """
    begin = start_ids(tokenizer, bos)
    rows = [begin + encoded.ids.tolist() for encoded in encode(tokenizer, prompts)]
    if not all(rows):
        if tokenizer.eos_token_id is None:
            raise DataError("an empty prompt, and a tokenizer without BOS and EOS to begin with: give a prompt")
        rows = [row or [tokenizer.eos_token_id] for row in rows]
    return rows


def plan_batches(lengths: Sequence[int], new_tokens: int, batch_tokens: int) -> list[list[int]]:
    """Rows of like length together, at most `batch_tokens` with padding and what is written; the same every time."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if batches and (lengths[batches[-1][0]] + new_tokens) * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 40,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
    stop: Callable[[str], int | None] | None = None,
    batch_tokens: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Continue each prompt; the prompt itself is not returned.

    Args:
        model: a decoder-only model; it is in evaluation mode meanwhile.
        tokenizer: a fast one; needs no padding token.
        prompts: texts, or ids with everything that stands before them.
        max_new_tokens: longest continuation; EOS ends one earlier.
        temperature: of the softmax; 0 takes the likeliest token.
        top_p: sample from the likeliest tokens that together have at least this probability.
        seed: one for all, of which each row makes its own by its number, or one for each row.
        stop: for a continuation, where it ends; None as long as it goes on.
        batch_tokens: most tokens of a batch, padding included; a single row may be longer.
        progress: told how many more rows are finished.

    Raises:
        DataError: a prompt is empty, or with its continuation longer than the model reads; logits are not finite.
    """
    if temperature < 0 or not 0 < top_p <= 1 or max_new_tokens < 1:
        raise DataError(
            f"sampling with temperature {temperature}, top_p {top_p}, max_new_tokens {max_new_tokens}: wanted at least "
            "0, above 0 and at most 1, at least 1"
        )
    if not prompts:
        return []
    rows = (
        prompt_ids(tokenizer, prompts)  # type: ignore[arg-type]
        if isinstance(prompts[0], str)
        else [list(map(int, ids)) for ids in prompts]
    )
    if not all(rows):
        raise DataError(f"prompt {next(row for row, ids in enumerate(rows) if not ids)} holds no token to go on from")
    limit = position_limit(model.config)
    longest = max(range(len(rows)), key=lambda row: len(rows[row]))
    if limit is not None and len(rows[longest]) + max_new_tokens > limit:
        raise DataError(
            f"prompt {longest} has {len(rows[longest])} tokens, and with {max_new_tokens} new ones that is more than "
            f"the {limit} that the model reads: shorten it, or max_new_tokens"
        )
    seeds = [np.random.SeedSequence([seed, row]) for row in range(len(rows))] if isinstance(seed, int) else seed
    texts = [""] * len(rows)
    was_training = model.training
    model.eval()
    try:
        for batch in plan_batches(list(map(len, rows)), max_new_tokens, batch_tokens):
            numbers = np.stack([np.random.default_rng(seeds[row]).random(max_new_tokens) for row in batch])
            writer = _Writer(model, tokenizer, [rows[row] for row in batch], stop)
            for row, text in zip(batch, writer.write(numbers, temperature, top_p), strict=True):
                texts[row] = text
            if progress is not None:
                progress(len(batch))
    finally:
        model.train(was_training)
    return texts


class _Writer:
    """One batch: prompts padded on the left, and what has been written behind them."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: list[list[int]],
        stop: Callable[[str], int | None] | None,
    ) -> None:
        self.model, self.tokenizer, self.rows, self.stop = model, tokenizer, rows, stop
        configured = model.generation_config.eos_token_id if model.generation_config is not None else None
        several = configured if isinstance(configured, list) else [configured]
        self.ends = {int(end) for end in (*several, tokenizer.eos_token_id) if end is not None}
        self.prompts = [self._decode(row) for row in rows]

    def write(self, numbers: np.ndarray, temperature: float, top_p: float) -> list[str]:
        """Texts of all rows; random numbers are [B, new tokens]."""
        device = next(self.model.parameters()).device
        width = max(map(len, self.rows))
        ids_BL = torch.zeros(len(self.rows), width, dtype=torch.long)
        mask_BL = torch.zeros(len(self.rows), width, dtype=torch.long)
        for row, tokens in enumerate(self.rows):
            ids_BL[row, width - len(tokens) :] = torch.tensor(tokens)
            mask_BL[row, width - len(tokens) :] = 1
        ids_BL, mask_BL = ids_BL.to(device), mask_BL.to(device)
        position_BL = (mask_BL.cumsum(1) - 1).clamp(min=0)
        uniform = torch.from_numpy(numbers).to(device, torch.float32)
        cache, written = DynamicCache(config=self.model.config), torch.zeros_like(ids_BL[:, :0])
        live = list(range(len(self.rows)))
        texts = [""] * len(self.rows)
        for step in range(numbers.shape[1]):
            logits_BV = self.model(
                input_ids=ids_BL,
                attention_mask=mask_BL,
                position_ids=position_BL,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1, : len(self.tokenizer)]  # behind these a padded vocabulary holds nothing
            token_B = draw(logits_BV, uniform[:, step], temperature, top_p)
            written = torch.cat([written, token_B[:, None]], 1)
            ids_BL, position_BL = token_B[:, None], position_BL[:, -1:] + 1
            mask_BL = torch.cat([mask_BL, torch.ones_like(mask_BL[:, :1])], 1)
            is_last = step + 1 == numbers.shape[1]
            if not is_last and (step + 1) % LOOK_EVERY:
                continue
            going = []
            for place, (row, tokens) in enumerate(zip(live, written.tolist(), strict=True)):
                texts[row], is_done = self._text(row, tokens)
                if not is_done:
                    going.append(place)
            if not going or is_last:
                break
            if len(going) < len(live):
                kept = torch.tensor(going, device=device)
                live = [live[place] for place in going]
                cache.batch_select_indices(kept)
                ids_BL, mask_BL, position_BL = ids_BL[kept], mask_BL[kept], position_BL[kept]
                written, uniform = written[kept], uniform[kept]
        return texts

    def _text(self, row: int, tokens: list[int]) -> tuple[str, bool]:
        """What a row has written, and whether that is all."""
        end = next((at for at, token in enumerate(tokens) if token in self.ends), None)
        # behind its prompt: SentencePiece drops the space of a text's first word
        text = self._decode(self.rows[row] + tokens[:end])[len(self.prompts[row]) :].rstrip("\N{REPLACEMENT CHARACTER}")
        cut = self.stop(text) if self.stop is not None else None
        return text[:cut], end is not None or cut is not None

    def _decode(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def draw(logits_BV: Tensor, uniform_B: Tensor, temperature: float, top_p: float) -> Tensor:
    """One token for each row, by inverting the distribution at `uniform` (in [0, 1)); the likeliest at temperature 0.

    Raises:
        DataError: logits are not finite.
    """
    if not bool(torch.isfinite(logits_BV.amax(-1)).all()):
        raise DataError(
            "the model's logits are not finite: its weights are damaged, or too large for its dtype (float32 or "
            "bfloat16 may help)"
        )
    if temperature == 0:
        return logits_BV.argmax(-1)
    probability_BV = torch.softmax(logits_BV.float() / temperature, -1)
    order_BV = None
    if top_p < 1:
        most = min(NUCLEUS, probability_BV.shape[-1])
        top_BK, order_BV = probability_BV.topk(most)
        if bool((top_BK.sum(-1) < top_p).any()):
            top_BK, order_BV = probability_BV.sort(descending=True)
        probability_BV = top_BK
        before_BV = probability_BV.cumsum(-1) - probability_BV
        probability_BV = probability_BV.masked_fill(before_BV >= top_p, 0)
    total_BV = probability_BV.cumsum(-1)
    chosen_B = torch.searchsorted(total_BV, uniform_B[:, None] * total_BV[:, -1:], right=True)
    # rounding may lead behind the last token that has any probability
    last_B = (probability_BV > 0).long().cumsum(-1).argmax(-1, keepdim=True)
    chosen_B = torch.minimum(chosen_B, last_B)
    return (chosen_B if order_BV is None else order_BV.gather(1, chosen_B))[:, 0]
