"""Greedy decoding of an encoder-decoder from forced prefixes of different lengths, cached, each row as if alone.

`generate` pads decoder prompts in a way BART cannot be told about; here prefixes are padded on the right, hidden by
masks, and every token keeps the position it has in its own row. Knows nothing of any method.
"""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from kedit.lm.backbones import output_head, output_scale
from kedit.lm.packing import additive, embed


@torch.no_grad()
def greedy(
    model: PreTrainedModel,
    states_BSD: Tensor,
    source_BS: Tensor,
    prefixes: Sequence[np.ndarray],
    stop: Collection[int],
    most: int,
) -> list[list[int]]:
    """Continue each prefix with the likeliest token until a stop token.

    Args:
        model: BART, or T5 with prefixes of one length (its bias depends on the distance in the padded row).
        states_BSD: encoder states.
        source_BS: true at real source tokens.
        prefixes: decoder ids of each row, start token included.
        stop: ids that end a row; they are not returned.
        most: most new tokens.

    Returns:
        the new ids of each row.
    """
    device = states_BSD.device
    lengths = torch.tensor([len(prefix) for prefix in prefixes], device=device)
    rows, width = len(prefixes), int(lengths.max())
    if not hasattr(model.get_decoder(), "embed_positions") and int(lengths.min()) != width:
        raise ValueError("T5 can only continue prefixes of one length")
    ids = torch.zeros(rows, width, dtype=torch.long)
    for row, prefix in enumerate(prefixes):
        ids[row, : len(prefix)] = torch.as_tensor(np.asarray(prefix))
    ids = ids.to(device)
    weight, bias = output_head(model)
    cache = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
    # the keys a row may see: its prefix, then everything generated
    keys = torch.arange(width, device=device)[None] < lengths[:, None]
    seen = keys[:, None, :] & torch.ones(width, width, dtype=torch.bool, device=device).tril()
    positions = torch.arange(width, device=device).expand(rows, -1)
    stops = torch.tensor(sorted(stop), device=device)
    done = torch.zeros(rows, dtype=torch.bool, device=device)
    generated: list[Tensor] = []
    last = lengths - 1
    for step in range(most):
        past = 0 if step == 0 else width + step - 1
        embeddings = embed(model, model.get_decoder(), ids, positions, past)
        hidden = model.get_decoder()(
            inputs_embeds=embeddings,
            attention_mask=additive(seen, embeddings.dtype),
            encoder_hidden_states=states_BSD,
            encoder_attention_mask=additive(source_BS[:, None, :].expand(-1, ids.shape[1], -1), embeddings.dtype),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[torch.arange(rows, device=device), last]
        logits = (hidden * output_scale(model)) @ weight.T.to(hidden.dtype)
        token = (logits if bias is None else logits + bias).argmax(-1)
        done |= torch.isin(token, stops)
        generated.append(torch.where(done, -1, token))
        if bool(done.all()):
            break
        ids, positions = token[:, None], (lengths + step)[:, None]
        keys = torch.cat([keys, torch.ones(rows, 1, dtype=torch.bool, device=device)], 1)
        seen, last = keys[:, None, :], torch.zeros_like(last)
    table = torch.stack(generated, 1).tolist() if generated else [[] for _ in prefixes]
    return [[token for token in row if token >= 0] for row in table]
