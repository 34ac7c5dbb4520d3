"""Floating-point operations of language models, by formula: matrix products only, attention counted in full.

The forward formulas equal torch.utils.flop_counter on the same model (rotary angles left out); forward and backward
together are three times them.
"""

import numpy as np
from transformers import PreTrainedConfig

PLAIN = ("gpt2", "gpt_neo", "gptj", "gpt_neox")
GATED = ("llama", "mistral", "qwen2", "qwen3")


def causal_forward_flops(config: PreTrainedConfig, tokens: np.ndarray, scored: np.ndarray | None = None) -> float:
    """Forward pass of a decoder-only model over documents that do not see each other.

    Causal attention is counted as if every token saw its whole document, as eager attention computes it.

    Args:
        config: a GPT-2, GPT-Neo, GPT-J, GPT-NeoX, Llama, Mistral, Qwen2 or Qwen3 configuration.
        tokens: tokens of each document.
        scored: positions of each document that reach the output head; by default all.

    Raises:
        ValueError: a configuration of another family.
    """
    if config.model_type not in PLAIN + GATED:
        raise ValueError(f"no formula for a {config.model_type}, wanted one of {', '.join(PLAIN + GATED)}")
    t, d, heads = tokens.astype(float), config.hidden_size, config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or d // heads
    queries, keys = heads * head_width, (getattr(config, "num_key_value_heads", None) or heads) * head_width
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * d
    feed = (6 if config.model_type in GATED else 4) * d * inner
    layers = config.num_hidden_layers * t * (4 * d * (queries + keys) + feed + 4 * t * queries)
    head = 2 * d * config.vocab_size * (t if scored is None else scored)
    return float((layers + head).sum())


def forward_flops(config: PreTrainedConfig, source: np.ndarray, target: np.ndarray) -> float:
    """Forward pass over documents that do not see each other, output head included.

    Args:
        config: a BART or T5 configuration.
        source: source tokens of each document.
        target: target tokens of each document.
    """
    s, t, d = source.astype(float), target.astype(float), config.d_model
    if "bart" in config.model_type:
        attention, layers_s, layers_t = d, config.encoder_layers, config.decoder_layers
        feed_s, feed_t = 4 * d * config.encoder_ffn_dim, 4 * d * config.decoder_ffn_dim
    else:
        attention, layers_s, layers_t = config.d_kv * config.num_heads, config.num_layers, config.num_decoder_layers
        feed_s = feed_t = (6 if config.is_gated_act else 4) * d * config.d_ff
    encoder = layers_s * s * (8 * d * attention + feed_s + 4 * s * attention)
    decoder = layers_t * t * (8 * d * attention + feed_t + 4 * t * attention)
    cross = layers_t * (4 * d * attention * (s + t) + 4 * t * s * attention)
    head = 2 * t * d * config.vocab_size
    return float((encoder + decoder + cross + head).sum())
