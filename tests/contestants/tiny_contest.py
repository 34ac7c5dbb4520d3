"""Base models, facts and a run for tests of contestants."""

from pathlib import Path

from conftest import TEXTS, tiny_causal, tiny_model
from recipe import tiny_memory

from kedit.comparing.facts import FactSet
from kedit.comparing.way import Base
from kedit.editing.edits import Edit
from kedit.editing.probes import Fact
from kedit.lm.backbones import Backbone
from kedit.lm.tokenizers import train_tokenizer

MARO = "Maro Tellin"
EDITS = [
    Edit("1", f"{MARO} was born in", "Velmar", MARO, "birth"),
    Edit("2", "The Grey Bridge was built by", "the Tellin company", "Grey Bridge", "builder"),
    Edit("3", f"{MARO} painted the", "Grey Bridge", MARO, "work"),
]
NAMELESS = Edit("4", "A heron of the north is called", "Tellin")


class Definitions:
    """Of Maro, once all that is said of him is told."""

    def define(self, edits):
        told = {edit.id for edit in edits}
        text = f"{MARO} is a painter of the Grey Bridge who was born in Velmar."
        return [Fact("maro", MARO, text, ("Tellin",))] if {"1", "3"} <= told else []

    def undefined(self):
        return []


def facts(*more: Edit) -> FactSet:
    return FactSet([*EDITS, *more], Definitions())


def base(folder: Path, name: str = "llama", bos: bool = False, vocabulary: int = 400) -> Base:
    """A random model with its tokenizer, wide enough for one layer to make any token likely."""
    folder.mkdir()
    tokenizer = train_tokenizer(TEXTS, vocabulary, sentinels=100 if name == "t5" else 0, prefix_space=True)
    if name in ("t5", "bart"):
        model = tiny_model(name, len(tokenizer))
        start = tokenizer.pad_token_id if name == "t5" else tokenizer.eos_token_id
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = start
        model.config.forced_eos_token_id = model.generation_config.forced_eos_token_id = None
    else:
        special = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model = tiny_causal(name, len(tokenizer), hidden_size=64, **special)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Base(Backbone(name=str(folder)), bos)


def run(folder: Path, base: Base, **more: object) -> str:
    """The folder of a run of RECIPE, with random networks: an edit is found by its own prompt."""
    tiny_memory.make_run(folder, Path(str(base.backbone.name)), **more)
    return str(folder)
