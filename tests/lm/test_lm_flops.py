import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from kedit.lm.flops import causal_forward_flops

GPT = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4}
LLAMA = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 80,
}  # fmt: skip
NEO = {
    "vocab_size": 99, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 8,
    "attention_types": [[["global", "local"], 1]],
}  # fmt: skip
MODELS = {
    "gpt2": GPT,
    "gpt2-inner": {**GPT, "n_inner": 50},
    "gpt_neo": NEO,
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_neox": {**LLAMA, "num_key_value_heads": 4},
    "llama": LLAMA,
    "llama-wide-heads": {**LLAMA, "head_dim": 16},
    "qwen2": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 16},
}


@pytest.mark.parametrize("name", MODELS)
def test_flops_equal_the_counter(name):
    config = AutoConfig.for_model(name.split("-")[0], **MODELS[name])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    ids = torch.ones(1, 24, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False)
    operations = counter.get_flop_counts()
    rotary = sum(sum(counts.values()) for module, counts in operations.items() if module.endswith("rotary_emb"))
    expected = counter.get_total_flops() - rotary
    assert causal_forward_flops(config, np.array([24])) == expected
    assert causal_forward_flops(config, np.array([24, 24])) == 2 * expected
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False, logits_to_keep=5)
    assert causal_forward_flops(config, np.array([24]), np.array([5])) == counter.get_total_flops() - rotary


def test_known_sizes():
    # forward operations per token: GPT-2 at 1,024 tokens, GPT-2 XL, and the 7 billion Llama at 128
    gpt2 = AutoConfig.for_model("gpt2")
    assert causal_forward_flops(gpt2, np.array([1024])) / 1024 == pytest.approx(2.848e8, rel=1e-3)
    xl = AutoConfig.for_model("gpt2", n_embd=1600, n_layer=48, n_head=25)
    assert causal_forward_flops(xl, np.array([1024])) / 1024 == pytest.approx(3.425e9, rel=1e-3)
    llama = AutoConfig.for_model("llama")
    assert causal_forward_flops(llama, np.array([128])) / 128 == pytest.approx(1.328e10, rel=1e-3)


def test_other_families_are_refused():
    with pytest.raises(ValueError, match="no formula for a bart, wanted one of gpt2"):
        causal_forward_flops(AutoConfig.for_model("bart"), np.array([3]))
