"""What turns texts into memory: keys of edits, queries, the sentinel's threshold, and prompt vectors.

An edit is found where the similarity of query and key exceeds the sentinel's threshold for that query. Knows nothing of
where keys are kept, and of the frozen language model nothing but its input embeddings.

Shapes: N texts, L tokens of the encoder, M tokens of the language model, H width of the encoder, E width of the
language model's embeddings, S slots of W numbers, D = S * W width of keys, T prompt vectors.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kedit.recipe.texts import TextBatch

Embed = Callable[[Tensor], Tensor]
"""The frozen language model's input embeddings: ids [...] to [..., E]."""
Similarity = Callable[[Tensor, Tensor], Tensor]
"""Of queries [P, D] and keys [P, D], pair by pair: [P], never more than their inner product."""


class MemoryNetworks(nn.Module, ABC):
    """Encoder, sentinel and prompt encoder over one trunk.

    Attributes:
        key_width: D.
        tokens: T.
        key_reads_target: whether a key is made of prompt and target, or of the prompt alone.
        trunk: the encoder.
    """

    key_width: int
    tokens: int
    key_reads_target: bool
    trunk: PreTrainedModel

    @abstractmethod
    def keys(self, texts: TextBatch) -> Tensor:
        """Keys [N, D] of edits."""

    @abstractmethod
    def queries(self, texts: TextBatch) -> Tensor:
        """Queries [N, D], to be compared with keys."""

    def similarities(self, queries_QD: Tensor, keys_KD: Tensor) -> Tensor:
        """How much every query means every key: [Q, K], never more than their inner product."""
        return queries_QD @ keys_KD.T

    @property
    def pairwise(self) -> Similarity | None:
        """The same pair by pair; None where it is the inner product."""
        return None

    @abstractmethod
    def threshold(self, queries_ND: Tensor) -> Tensor:
        """The sentinel's similarity [N]: what a key must exceed to be meant by a query."""

    @abstractmethod
    def prompts(self, texts: TextBatch, embed: Embed) -> Tensor:
        """Prompt vectors [N, T, E] of edits, texts that hold prompt and target with the language model's tokens."""


class SlotNetworks(MemoryNetworks):
    """Keys of slots, and prompt vectors that copy.

    A pooled sentence vector loses the object, and which of two names it was; so every slot, and every prompt vector, is
    a sum of token embeddings under an attention of its own, and what the trunk knows of the context is added.

    - slots: slot_s = normalise(P e_s + C h_s), e_s and h_s the trunk's input embeddings and states under attention s;
      the same for keys and queries. The similarity is a soft minimum of the slots' cosines c_s,
      -1/b log mean exp(-b c_s): subject and relation must both agree. The inner product is their mean, never less.
    - prompt vectors: p_t = f_t + C' h_t, f_t the language model's own embeddings under attention t, C' zero at the
      start.
    - sentinel: a learned number and a small term of the query.

    Args:
        trunk: a Hugging Face encoder.
        width: E.
        tokens: T.
        slots: S.
        slot_width: W.
        strictness: b; 0 for the mean.
    """

    key_reads_target = False

    def __init__(
        self, trunk: PreTrainedModel, width: int, tokens: int = 5, slots: int = 4, slot_width: int = 64,
        strictness: float = 40.0,
    ):  # fmt: skip
        super().__init__()
        hidden = trunk.config.hidden_size
        trunk.pooler = None  # type: ignore[assignment]  # it would have no gradient
        self.trunk = trunk
        self.tokens, self.slots, self.slot_width, self.key_width = tokens, slots, slot_width, slots * slot_width
        self.strictness = strictness
        self.slot_attention = _Attention(slots, 2 * hidden)
        self.slot_copy = nn.Linear(hidden, slot_width, bias=False)
        self.slot_context = _zeros(nn.Linear(hidden, slot_width, bias=False))
        # [1] rather than []: neither DeepSpeed nor FSDP2 takes a weight without dimensions
        self.sentinel = nn.Parameter(torch.tensor([0.5]))
        self.sentinel_of_query = _zeros(nn.Linear(self.key_width, 1, bias=False))
        self.log_scale = nn.Parameter(torch.tensor([math.log(20.0)]))
        self.prompt_state = nn.Linear(hidden, width, bias=False)
        self.prompt_attention = _Attention(tokens, 2 * width)
        self.prompt_context = _zeros(nn.Linear(hidden, width, bias=False))

    def keys(self, texts: TextBatch) -> Tensor:
        return self.queries(texts)

    def queries(self, texts: TextBatch) -> Tensor:
        states_NLH, embedded_NLH = self._read(texts)
        weights_NSL = self.slot_attention(torch.cat([states_NLH, embedded_NLH], -1), texts.real_NL)
        slots_NSW = self.slot_copy(weights_NSL @ embedded_NLH) + self.slot_context(weights_NSL @ states_NLH)
        return (nn.functional.normalize(slots_NSW, dim=-1) / math.sqrt(self.slots)).flatten(1)

    @property
    def pairwise(self) -> Similarity | None:
        return self._similarity if self.strictness else None

    def _similarity(self, queries_PD: Tensor, keys_PD: Tensor) -> Tensor:
        products_PSW = (queries_PD * keys_PD).unflatten(-1, (self.slots, self.slot_width))
        return self._agreement(products_PSW.sum(-1) * self.slots)

    def similarities(self, queries_QD: Tensor, keys_KD: Tensor) -> Tensor:
        if not self.strictness:
            return queries_QD @ keys_KD.T
        slots = (self.slots, self.slot_width)
        cosines = torch.einsum("qsw,ksw->qks", queries_QD.unflatten(-1, slots), keys_KD.unflatten(-1, slots))
        return self._agreement(cosines * self.slots)

    def _agreement(self, cosines: Tensor) -> Tensor:
        """[..., S] to [...]."""
        return (math.log(self.slots) - torch.logsumexp(-self.strictness * cosines, -1)) / self.strictness

    def threshold(self, queries_ND: Tensor) -> Tensor:
        return self.sentinel + 0.2 * torch.tanh(self.sentinel_of_query(queries_ND)[:, 0])

    @property
    def scale(self) -> Tensor:
        """Inverse temperature of similarities in the loss, [1]."""
        return self.log_scale.exp().clamp(max=100.0)

    def prompts(self, texts: TextBatch, embed: Embed) -> Tensor:
        states_NLH, _ = self._read(texts)
        places = texts.place_NM[:, :, None].expand(-1, -1, states_NLH.shape[-1])
        states_NMH = states_NLH.gather(1, places)
        copied_NME = embed(texts.model_ids_NM).to(states_NMH.dtype)
        # the language model's embeddings have any scale
        scaled_NME = nn.functional.layer_norm(copied_NME, copied_NME.shape[-1:])
        read = torch.cat([self.prompt_state(states_NMH), scaled_NME], -1)
        weights_NTM = self.prompt_attention(read, texts.model_real_NM)
        return weights_NTM @ copied_NME + self.prompt_context(weights_NTM @ states_NMH)

    def _read(self, texts: TextBatch) -> tuple[Tensor, Tensor]:
        """The trunk's final states and its input embeddings, each [N, L, H]."""
        states = self.trunk(input_ids=texts.ids_NL, attention_mask=texts.real_NL.long()).last_hidden_state
        return states, self.trunk.get_input_embeddings()(texts.ids_NL)


class _Attention(nn.Module):
    """Learned queries over tokens: [N, L, width] to weights [N, queries, L] that sum to 1."""

    def __init__(self, queries: int, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, queries)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        scores = self.score(tokens).transpose(1, 2).float()
        return scores.masked_fill(~real[:, None, :], -torch.inf).softmax(-1).to(tokens.dtype)


def _zeros(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    return layer
