"""A frozen language model that reads rows, prompt vectors before some of them, and gives states to learn from.

[vectors; embeddings of the text] are read as if all were tokens: positions count both, mask and positions are given
explicitly, and the model is stock, without hooks or a forward of ours. The vectors stand before all tokens of the text,
BOS included, and before an encoder-decoder's source. Knows no encoder of edits and no repository.

Shapes: R rows, L tokens, T prompt vectors, E width of the input embeddings, W slots of a row, n target tokens, D width
of the final states, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from kedit.editing.sources import DataError
from kedit.lm.backbones import CAUSAL, SEQ2SEQ, output_head, output_scale, switch_dropout_off
from kedit.recipe.asking import Asking, Rows


class FrozenModel:
    """A language model that is never moved, cast or changed; it may be quantised, or spread out by a `device_map`.

    Args:
        model: decoder-only, or T5 or BART; from now on in evaluation mode and with frozen weights.
        tokenizer: its fast tokenizer; needs no padding token.
        bos: put the tokenizer's BOS before each text although the tokenizer does not, as in `Asking`.
        chat: apply the tokenizer's chat template to prompts, each a user's message.
        chat_options: what the template itself knows.

    Attributes:
        asking: turns prompts and targets into token ids.

    Raises:
        DataError: the architecture is another, or the tokenizer lacks what is asked for.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        bos: bool = False,
        chat: bool = False,
        chat_options: Mapping[str, Any] | None = None,
    ) -> None:
        if model.config.model_type not in (*CAUSAL, *SEQ2SEQ):
            raise DataError(
                f"the language model is a {model.config.model_type}, wanted one of {', '.join((*CAUSAL, *SEQ2SEQ))}"
            )
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.is_seq2seq = bool(model.config.is_encoder_decoder)
        start = None
        if self.is_seq2seq:
            configured = (model.generation_config, model.config)
            found = [getattr(one, "decoder_start_token_id", None) for one in configured if one is not None]
            start = next((one for one in found if one is not None), None)
            if start is None:
                raise DataError("the model's configuration has no decoder_start_token_id: its decoder cannot begin")
        self.asking = Asking(tokenizer, start, bos, chat, chat_options)

    @property
    def width(self) -> int:
        return int(self.model.get_input_embeddings().embedding_dim)

    @property
    def device(self) -> torch.device:
        """Where ids are read, however the model is spread or offloaded."""
        embedding = self.model.get_input_embeddings()
        hook = getattr(embedding, "_hf_hook", None)  # accelerate's; offloaded weights are on meta
        where = getattr(hook, "execution_device", None)
        return embedding.weight.device if where is None else torch.device(where)

    @property
    def limit(self) -> int | None:
        """Most slots that a row may have, vectors included; none for T5."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def token_embeddings(self, ids: Tensor) -> Tensor:
        """The frozen input embeddings of ids: [..., L] -> [..., L, E], BART's with its scale. Prompt vectors stand in
        their place: positions, and BART's layer norm, come behind.
        """
        return self.model.get_input_embeddings()(ids.to(self.device))

    def head(self) -> tuple[nn.Parameter, Tensor | None]:
        """Weight [V, D] and bias that turn target states into logits."""
        return output_head(self.model)

    def logits(self, states_nD: Tensor) -> Tensor:
        """Logits [n, V]; by the module itself, which may be quantised or elsewhere."""
        logits_nV = self.model.get_output_embeddings()(states_nD)
        bias_1V = getattr(self.model, "final_logits_bias", None)
        return logits_nV if bias_1V is None else logits_nV + bias_1V.to(logits_nV.device)

    def target_states(self, rows: Rows, prompts_RTE: Tensor | None = None, edited_R: Tensor | None = None) -> Tensor:
        """Final states [n, D] that predict the rows' target tokens, in one pass.

        Args:
            rows: as `asking.rows` makes them; none longer, with its vectors, than the model reads.
            prompts_RTE: prompt vectors of each row; gradients flow into them. None where no row has any.
            edited_R: the rows that have them; by default all. What stands for the others does not matter.
        """
        self.settle()
        rows = rows.to(self.device)
        shift_R = torch.zeros_like(rows.length_R)
        if prompts_RTE is None:
            real_RL = torch.arange(rows.ids_RL.shape[1], device=self.device) < rows.length_R[:, None]
            read: dict[str, Tensor] = {"input_ids": rows.ids_RL, "attention_mask": real_RL.long()}
            position_RW = torch.arange(rows.ids_RL.shape[1], device=self.device).expand_as(rows.ids_RL)
        else:
            tokens = prompts_RTE.shape[1]
            has_R = torch.ones_like(shift_R, dtype=torch.bool) if edited_R is None else edited_R.to(self.device)
            shift_R = tokens * has_R
            width = tokens + rows.ids_RL.shape[1]
            joined_RWE, real_RW, position_RW, _ = self.join(
                rows.ids_RL, rows.length_R, prompts_RTE, has_R, min(width, self.limit or width), on_left=False
            )
            read = {"inputs_embeds": joined_RWE, "attention_mask": real_RW.long()}
        with self._recomputing():
            if self.is_seq2seq:
                source_RWD = self.model.get_encoder()(**read).last_hidden_state
                states = self.model.get_decoder()(
                    input_ids=rows.decoder_RU,
                    encoder_hidden_states=source_RWD,
                    encoder_attention_mask=read["attention_mask"].to(source_RWD.device),
                    use_cache=False,
                ).last_hidden_state * output_scale(self.model)
                shift_R = torch.zeros_like(shift_R)
            else:
                states = self.model.base_model(**read, position_ids=position_RW, use_cache=False).last_hidden_state
        place_n = rows.place_n + shift_R[rows.row_n]
        return states[rows.row_n.to(states.device), place_n.to(states.device)]

    def join(
        self, ids_RL: Tensor, length_R: Tensor, prompts_RTE: Tensor, edited_R: Tensor, width: int, on_left: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Vectors and embeddings side by side.

        Returns:
            [R, width, E]; which slots are real; the position of each; where in [vectors; text] it is taken from.
        """
        text_RLE = self.token_embeddings(ids_RL)
        both_RXE = torch.cat([prompts_RTE.to(text_RLE.device, text_RLE.dtype), text_RLE], 1)
        tokens = prompts_RTE.shape[1]
        place_RW, real_RW, position_RW = slots(length_R, tokens * edited_R, width, on_left)
        source_RW = (place_RW + tokens * (~edited_R)[:, None]).clamp(0, both_RXE.shape[1] - 1)
        row_R1 = torch.arange(len(ids_RL), device=text_RLE.device)[:, None]
        return both_RXE[row_R1, source_RW.to(text_RLE.device)], real_RW, position_RW, source_RW

    def settle(self) -> None:
        """Back to evaluation mode, should something that holds the model have set it to training."""
        if self.model.training:
            self.model.eval()

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Gradient checkpointing, where it is switched on: layers recompute only in training mode, and they alone are
        put into it, without dropout.
        """
        layers: list[nn.Module] = []
        if torch.is_grad_enabled() and self.model.is_gradient_checkpointing:
            switch_dropout_off(self.model)
            layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        try:
            for layer in layers:
                layer.training = True
            yield
        finally:
            for layer in layers:
                layer.training = False


def slots(length_R: Tensor, before_R: Tensor, width: int, on_left: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of text with so many vectors before it, padded to a width. Each [R, width]: which slot of the row's own
    stands there (out of range at padding), whether it is real, and its position (0 at padding).
    """
    own_R = length_R + before_R
    start_R = width - own_R if on_left else torch.zeros_like(own_R)
    place_RW = torch.arange(width, device=length_R.device) - start_R[:, None]
    real_RW = (place_RW >= 0) & (place_RW < own_R[:, None])
    return place_RW, real_RW, place_RW.masked_fill(~real_RW, 0)
