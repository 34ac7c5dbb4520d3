"""Floating-point operations of an encoder-decoder, by formula: matrix products only, attention counted in full.

The forward formulas equal torch.utils.flop_counter on the same model; forward and backward together are three times it.
"""

import numpy as np
from transformers import PreTrainedConfig


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
