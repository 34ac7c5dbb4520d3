"""What a forward pass keeps for the backward pass, in bytes, by formula.

For each token of a layer: a multiple of the width d for attention, norms and residuals, and of the feed-forward width F
(Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models": 34 d bytes in 16 bits, where
F = 4 d). The multiples here were read off the architectures of transformers, whose activation functions in Python
(gelu_new) keep five tensors instead of two. Knows no device.
"""

from dataclasses import dataclass

from transformers import PreTrainedConfig

ROTARY = ("gptj", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")
GATED = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class Kept:
    """In which form activations are kept.

    Args:
        wide: bytes of a number around norms and residuals: 4, or 2 where all weights are bfloat16.
        narrow: bytes of a number behind a matrix product: 2 under autocast.
        scores: whether attention holds its scores [heads, tokens, tokens]: eager attention does, and torch's own on the
            CPU where attention has dropout.
        checkpointing: whether only a layer's input is kept, and the rest computed again, a layer at a time.
    """

    wide: int = 4
    narrow: int = 4
    scores: bool = False
    checkpointing: bool = False


def activation_bytes(config: PreTrainedConfig, positions: float, row_tokens: int, kept: Kept) -> float:
    """Bytes kept by the layers of a model for `positions` tokens; of an encoder-decoder, half of them are its source's.

    Without the loss: ours hold a chunk of the logits (see `losses`). Dropout's masks are counted as one byte each.

    Args:
        config: a configuration of any causal or encoder-decoder family that `backbones` names.
        positions: tokens of the batch, with padding.
        row_tokens: tokens of a row, which see each other.
        kept: in which form.
    """
    d = config.hidden_size
    heads, kind = config.num_attention_heads, config.model_type
    functions = getattr(config, "activation_function", None) or getattr(config, "hidden_act", None)
    if config.is_encoder_decoder:
        functions = functions or getattr(config, "dense_act_fn", "relu")
        gated = getattr(config, "is_gated_act", False)
        inner = getattr(config, "encoder_ffn_dim", None) or config.d_ff
    else:
        gated = kind in GATED
        inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * d
    feed = inner * ({"gelu_new": 5, "relu": 1}.get(str(functions), 2) + 2 * gated)
    feed += 2 * inner * (kind in ("t5", "mt5"))  # dropout between the two products
    around = 8 * d + 2.5 * d * (kind in ROTARY) + 4 * d * (kind == "qwen3") + 2 * d * (kind in ("t5", "mt5"))
    score = 2 * heads * row_tokens * kept.scores
    layer = kept.wide * around + kept.narrow * (feed + score) + 2 * d
    cross = kept.wide * 5 * d + kept.narrow * (2 * d + score)
    if config.is_encoder_decoder:
        encoder = getattr(config, "encoder_layers", None) or config.num_layers
        decoder = getattr(config, "decoder_layers", None) or config.num_decoder_layers
        layers, whole = (encoder + decoder) / 2, (encoder * layer + decoder * (layer + cross)) / 2
    else:
        layers, whole = config.num_hidden_layers, config.num_hidden_layers * layer
    if kept.checkpointing:
        whole = layers * kept.wide * d + layer + cross * config.is_encoder_decoder
    return positions * (whole + 4 * kept.wide * d)
