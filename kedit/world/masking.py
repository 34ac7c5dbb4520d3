"""Masked language modelling: which tokens an encoder has to tell, and the loss of telling them.

Knows no world and no method.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPANS = (1, 2, 3, 4)
"""Lengths of what is hidden: names and objects have several tokens, and one tells the next."""


@dataclass
class MaskedTokenLoss:
    """Mean cross-entropy of hidden tokens, in nats: 80 % are masked, 10 % exchanged, 10 % left (Devlin et al. 2019).

    Args:
        tokenizer: with a mask token, and special tokens that stand before all others.
        share: of the tokens that are hidden, about.
        seed: of their choice.
    """

    tokenizer: PreTrainedTokenizerBase
    share: float = 0.2
    seed: int = 0
    _generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, model: PreTrainedModel, ids_BL: Tensor, counted_BL: Tensor) -> Tensor:
        """The loss of a batch, of which only counted tokens that are not special are hidden."""
        hidden_BL, read_BL = self.hide(ids_BL, counted_BL)
        real_BL = ids_BL != self.tokenizer.pad_token_id
        states_BLH = model.base_model(input_ids=read_BL, attention_mask=real_BL.long()).last_hidden_state
        logits_NV = model.lm_head(states_BLH[hidden_BL])
        return nn.functional.cross_entropy(logits_NV, ids_BL[hidden_BL])

    def hide(self, ids_BL: Tensor, counted_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens are to be told, and what is read in place of all of them; both [B, L]."""
        special = torch.tensor(self.tokenizer.all_special_ids)
        may_BL = counted_BL & ~torch.isin(ids_BL, special)
        hidden_BL = torch.zeros_like(may_BL)
        for length in SPANS:
            begins_BL = self._drawn(ids_BL) < self.share / sum(SPANS)
            for offset in range(min(length, ids_BL.shape[1])):
                hidden_BL[:, offset:] |= begins_BL[:, : ids_BL.shape[1] - offset]
        hidden_BL &= may_BL
        if not bool(hidden_BL.any()):  # a short batch: something has to be told
            hidden_BL = may_BL
        drawn_BL = self._drawn(ids_BL)
        others_BL = torch.randint(len(special), len(self.tokenizer), ids_BL.shape, generator=self._generator)
        read_BL = ids_BL.masked_fill(hidden_BL & (drawn_BL < 0.8), int(self.tokenizer.mask_token_id))
        return hidden_BL, torch.where(hidden_BL & (drawn_BL >= 0.9), others_BL, read_BL)

    def _drawn(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=self._generator)
