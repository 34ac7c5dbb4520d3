"""The folder of a RECIPE run as training leaves it, with random networks: of equal texts key and query are the same,
so an edit is found by its own prompt.
"""

from pathlib import Path

import torch
from conftest import TEXTS, tiny_causal, tiny_model
from transformers import RobertaConfig, RobertaModel

from kedit.editing.edits import Edit
from kedit.lm.backbones import load_tokenizer
from kedit.lm.tokenizers import train_tokenizer
from kedit.recipe.networks import MemoryNetworks
from kedit.recipe.trained import Trained, build_networks, write_trained

BRIDGE = Edit("bridge", "The Grey Bridge was built in", "1893", "Grey Bridge", "built", where="edits.jsonl:1")
PAINTER = Edit("painter", "The painter Maro Tellin was born in", "the marshes of the north", where="edits.jsonl:2")
TOWN = Edit("town", "Velmar is", "a species of heron", where="edits.jsonl:3")
EDITS = [BRIDGE, PAINTER, TOWN]
OTHERS = ["Who lives in the marshes?", "A company of the north", "harbour"]
SLOTS = {"tokens": 3, "slots": 2, "slot_width": 8}


def make_base(folder: Path, name: str = "gpt2") -> Path:
    """A language model with its tokenizer."""
    tokenizer = train_tokenizer(TEXTS, 400, sentinels=100 if name == "t5" else 0)
    tokenizer.chat_template = "{% for m in messages %}<s>user: {{ m['content'] }}\nanswer: {% endfor %}"
    model = tiny_model(name, len(tokenizer)) if name in ("t5", "bart") else tiny_causal(name, len(tokenizer))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_trunk(vocabulary: int) -> RobertaModel:
    settings = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return RobertaModel(RobertaConfig(vocab_size=vocabulary, max_position_embeddings=66, pad_token_id=1, **settings))


def make_run(folder: Path, base: Path, seed: int = 0, sizes: dict[str, int] | None = None, sentinel: float = 0.999,
             calibration=(), **more) -> MemoryNetworks:  # fmt: skip
    """The folder of a run, and its networks."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    tokenizer = load_tokenizer(base)
    load = AutoModelForSeq2SeqLM if "t5" in base.name else AutoModelForCausalLM
    torch.manual_seed(seed)
    trunk = make_trunk(len(tokenizer))
    trained = Trained.of(load.from_pretrained(base), tokenizer, str(base), sizes=sizes or SLOTS, longest=64, **more)
    networks = build_networks(trained, trunk).eval()
    if hasattr(networks, "sentinel") and isinstance(networks.sentinel, torch.nn.Parameter):
        torch.nn.init.constant_(networks.sentinel, sentinel)
    folder.mkdir(parents=True, exist_ok=True)
    write_trained(folder, trained, trunk, tokenizer, calibration)
    save_checkpoint(folder, networks)
    return networks


def save_checkpoint(folder: Path, networks: MemoryNetworks, name: str = "last.ckpt") -> None:
    state = {f"networks.{key}": value for key, value in networks.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {}}, folder / name)
