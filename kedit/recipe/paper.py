"""The paper's networks: one unnormalised vector a text, a sentinel of learned tokens, prompt vectors made of the key.

    x = [pooler; mean; max; min of the trunk's states],  r = u + relu(A u + a),  u = W x + b    one head for keys, one
                                                                                              for queries
    s(q, k) = r_q . r_k / sqrt(D)
    h = r_k + relu(A' r_k + a'),  p = C h + c                                                   T prompt vectors

The sentinel is r_k of learned tokens that enter the trunk behind its embeddings. Knows no repository, and nothing of
the language model but its width.

Shapes: N texts, L tokens of the encoder, H its width, D width of keys, T prompt vectors, E width of the language
model's embeddings.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kedit.editing.sources import DataError
from kedit.recipe.networks import Embed, MemoryNetworks
from kedit.recipe.texts import TextBatch


class PaperNetworks(MemoryNetworks):
    """Networks as in the paper's code; `SlotNetworks` mends what fails in them.

    A quarter power of D divides keys and queries alike, so that their inner product is the paper's similarity.

    Args:
        trunk: a Hugging Face encoder of BERT's form, with its pooling layer.
        width: E.
        tokens: T.
        key_width: D.
        sentinel_tokens: learned tokens of the sentinel.

    Raises:
        DataError: the trunk has no stack of layers of its own, or no pooling layer.
    """

    key_reads_target = True

    def __init__(
        self, trunk: PreTrainedModel, width: int, tokens: int = 3, key_width: int = 4096, sentinel_tokens: int = 10
    ) -> None:
        super().__init__()
        for part, inside in (("encoder", "layer"), ("pooler", "dense")):
            if not hasattr(getattr(trunk, part, None), inside):
                raise DataError(
                    f"the paper's networks were given a trunk of type {trunk.config.model_type!r} without "
                    f"{part}.{inside}; wanted BERT, RoBERTa or one of their form, loaded with its pooling layer "
                    "(or choose the default networks, which take any encoder)"
                )
        hidden = trunk.config.hidden_size
        self.trunk = trunk
        self.tokens, self.key_width = tokens, key_width
        self.root = key_width**0.25
        self.key_head = nn.Sequential(nn.Linear(4 * hidden, key_width), _Residual(key_width))
        self.query_head = nn.Sequential(nn.Linear(4 * hidden, key_width), _Residual(key_width))
        self.sentinel_tokens = nn.Parameter(torch.empty(sentinel_tokens, hidden).uniform_(-0.05, 0.05))
        self.prompt_head = nn.Sequential(_Residual(key_width), nn.Linear(key_width, tokens * width))

    def keys(self, texts: TextBatch) -> Tensor:
        return self.key_head(self._read(texts)) / self.root

    def queries(self, texts: TextBatch) -> Tensor:
        return self.query_head(self._read(texts)) / self.root

    def sentinel(self) -> Tensor:
        """The sentinel's key [D], as the weights are now: nothing is kept that could be stale."""
        states_1LH = self.trunk.get_submodule("encoder")(self.sentinel_tokens[None])[0]
        real_1L = torch.ones(states_1LH.shape[:2], dtype=torch.bool, device=states_1LH.device)
        pooled_1P = _pool(states_1LH, self.trunk.get_submodule("pooler")(states_1LH), real_1L)
        return self.key_head(pooled_1P)[0] / self.root

    def threshold(self, queries_ND: Tensor) -> Tensor:
        """One pass of the trunk whatever N is: ask for all queries of a step at once."""
        return similarity(queries_ND, self.sentinel()[None])[:, 0]

    def prompts(self, texts: TextBatch, embed: Embed) -> Tensor:
        return self.prompts_of(self.keys(texts))

    def prompts_of(self, keys_ND: Tensor) -> Tensor:
        """Prompt vectors [N, T, E] of keys: no text is read again."""
        return self.prompt_head(keys_ND * self.root).unflatten(1, (self.tokens, -1))

    def _read(self, texts: TextBatch) -> Tensor:
        read = self.trunk(input_ids=texts.ids_NL, attention_mask=texts.real_NL.long())
        return _pool(read.last_hidden_state, read.pooler_output, texts.real_NL)


class _Residual(nn.Module):
    """x + relu(A x + a)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x).relu()


def similarity(queries_QD: Tensor, keys_KD: Tensor) -> Tensor:
    """Inner products [Q, K] in float32, under autocast, too: of long vectors bfloat16 would lose the differences."""
    with torch.autocast(queries_QD.device.type, enabled=False):
        return queries_QD.float() @ keys_KD.float().T


def _pool(states_NLH: Tensor, pooler_NH: Tensor, real_NL: Tensor) -> Tensor:
    """The pooler's output and mean, maximum and minimum over real tokens: [N, 4 H]."""
    real_NL1 = real_NL[:, :, None]
    mean_NH = (states_NLH * real_NL1).sum(1) / real_NL1.sum(1)
    largest_NH = states_NLH.masked_fill(~real_NL1, -torch.inf).amax(1)
    smallest_NH = states_NLH.masked_fill(~real_NL1, torch.inf).amin(1)
    return torch.cat([pooler_NH, mean_NH, largest_NH, smallest_NH], 1)
