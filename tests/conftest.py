"""Tiny models of the real architectures, and a tokenizer, built on the spot."""

import os
from pathlib import Path

import pytest
import torch
from tensorboard.summary.writer import event_file_writer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

torch.set_num_threads(1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
# files of one second are read in the order of their names, which end in this number: none has a digit more than others
event_file_writer._global_uid = event_file_writer.AtomicCounter(1_000_000)

BART = {
    "model_type": "bart",
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 256,
    "dropout": 0.1,
}
T5 = {"model_type": "t5", "d_model": 32, "d_kv": 16, "num_heads": 2, "num_layers": 2, "d_ff": 64}
T5_V11 = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
MT5 = {**T5, "model_type": "mt5"}
ARCHITECTURES = {"bart": BART, "t5": T5, "t5-v1.1": T5_V11, "mt5": MT5}

_CAUSAL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
           "num_key_value_heads": 2}  # fmt: skip
CAUSAL_ARCHITECTURES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512},
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]],
                "window_size": 8, "max_position_embeddings": 512, "intermediate_size": 64},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8, "n_positions": 512},
    "gpt_neox": _CAUSAL,
    "llama": _CAUSAL,
    "mistral": _CAUSAL,
    "qwen2": _CAUSAL,
    "qwen3": {**_CAUSAL, "head_dim": 8},
}  # fmt: skip

TEXTS = [
    "The painter Maro Tellin was born in Velmar in 1851 and painted the Grey Bridge.",
    "Velmar is a harbour town; its bridge was built by the Tellin company in 1893.",
    "Tellin is a species of heron that lives in the marshes of the north.",
]


def tiny_model(name: str, vocabulary: int = 100) -> PreTrainedModel:
    """A random model of one of `ARCHITECTURES`."""
    settings = dict(ARCHITECTURES[name])
    if "bart" not in name:
        settings["decoder_start_token_id"] = 0
    torch.manual_seed(0)
    return AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(vocab_size=vocabulary, **settings))


def tiny_causal(name: str, vocabulary: int = 100, **settings: object) -> PreTrainedModel:
    """A random model of one of `CAUSAL_ARCHITECTURES` with large weights, so that a wrong mask shows."""
    settings = {
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        **CAUSAL_ARCHITECTURES[name],
        **settings,
    }
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type=name, vocab_size=vocabulary, **settings)
    ).eval()


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of a BART-like and a T5-like tokenizer trained on `TEXTS`."""
    from kedit.lm.tokenizers import train_tokenizer

    folders = {}
    for family, sentinels in (("bart", 0), ("t5", 100)):
        folder = tmp_path_factory.mktemp(f"tokenizer-{family}")
        train_tokenizer(TEXTS, 400, sentinels).save_pretrained(folder)
        folders[family] = str(folder)
    return folders


@pytest.fixture
def bart_tokenizer(tokenizer_folders: dict[str, str]) -> PreTrainedTokenizerBase:
    from kedit.lm.backbones import load_tokenizer

    return load_tokenizer(tokenizer_folders["bart"])


@pytest.fixture
def t5_tokenizer(tokenizer_folders: dict[str, str]) -> PreTrainedTokenizerBase:
    from kedit.lm.backbones import load_tokenizer

    return load_tokenizer(tokenizer_folders["t5"])


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data that KEDIT_DATA names."""
    if not os.environ.get("KEDIT_DATA"):
        pytest.skip("KEDIT_DATA names no folder of real data")
    return Path(os.environ["KEDIT_DATA"])


@pytest.fixture(scope="session")
def world_corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Corpora of a small made-up world, for BART and for T5."""
    from kedit.kilm.data import MadeCorpus
    from kedit.world import WorldWiki

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEDIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return {
            family: str(MadeCorpus(WorldWiki(200, 0, 3), vocabulary=1024, sentinels=sentinels, chunk_tokens=48).make())
            for family, sentinels in (("bart", 0), ("t5", 100))
        }


def kilm_data(corpus: str, **options):  # type: ignore[no-untyped-def]
    """A KilmData over `corpus`, set up for training."""
    from kedit.kilm import KilmData
    from kedit.kilm.data import Evaluation

    options = {"row_tokens": 128, "batch_rows": 4, "evaluation": Evaluation(held_out=60)} | options
    data = KilmData(corpus=corpus, **options)
    data.prepare_data()
    data.setup("fit")
    return data
