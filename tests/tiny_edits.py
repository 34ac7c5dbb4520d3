"""Edits for tests, and a configuration that learns them in seconds."""

from pathlib import Path

from conftest import tiny_causal

from kedit.editing.edit_file import write_edits
from kedit.editing.edits import Edit, EditSource, probe
from kedit.editing.sources import Question, QuestionSource
from kedit.lm.tokenizers import train_tokenizer

FIRST, LAST = ("Maro", "Elka", "Joric", "Nadu"), ("Tellin", "Velmar", "Padri", "Orsa")
TOWNS = ("Velmar", "Padri", "Korin")
PERSONS = [f"{first} {last}" for first in FIRST for last in LAST]

CONFIG = """
seed_everything: 3
run: {{name: {name}}}
model:
  class_path: kedit.recipe.RecipeModule
  init_args:
    backbone: {{name: {base}}}
    trunk: {{architecture: {{model_type: roberta, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2,
      intermediate_size: 16, max_position_embeddings: 66, type_vocab_size: 1}}}}
    reference: {reference}
    key_width: 16
    sentinel_tokens: 2
    slots: 2
    slot_width: 8
    bos: true
    weights: {{locality: 0.5}}
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 0.003}}}}
data:
  class_path: kedit.recipe.RecipeData
  init_args:
    train: {{class_path: tiny_edits.TinyEdits}}
    edits: {{class_path: tiny_edits.TinyEdits, init_args: {{first: 8}}}}
    unrelated: [{{class_path: tiny_edits.TinyQuestions}}]
    calibration: [{{class_path: tiny_edits.TinyQuestions}}]
    far: [{{class_path: tiny_edits.TinyQuestions}}]
    batch_edits: 3
    negatives: 2
    unrelated_queries: 2
    num_workers: {workers}
    evaluation: {{validation_edits: 3, validation_stored: 4, max_new_tokens: 3, batch: 4, immediate: 2, samples: 1}}
trainer:
  accelerator: cpu
  max_epochs: {epochs}
  val_check_interval: 4
  num_sanity_val_steps: 0
  log_every_n_steps: 1
checkpoint: {{every_n_train_steps: 3, save_last: true, save_top_k: 1}}
"""


class TinyEdits(EditSource):
    """Where each person was born.

    Args:
        first: begin with this person.
    """

    name = "tiny"

    def __init__(self, first: int = 0) -> None:
        self.first = first

    def load(self) -> list[Edit]:
        found = []
        for number, person in enumerate(PERSONS[self.first :], start=self.first):
            town, other = TOWNS[number % 3], PERSONS[(number + 5) % len(PERSONS)]
            probes = (
                probe(f"e{number}", "generality", f"The birthplace of {person} is", town),
                probe(f"e{number}", "locality/near", f"{other} plays the", "harp"),
            )
            found.append(Edit(f"e{number}", f"{person} was born in", town, person, "birth", probes))
        return found


class TinyQuestions(QuestionSource):
    name = "tiny"

    def __iter__(self):
        return iter([Question(f"How far is it to {town}?", []) for town in TOWNS])


def base(folder: Path) -> Path:
    """A random language model with its tokenizer."""
    texts = [edit.text for edit in TinyEdits().load()]
    tokenizer = train_tokenizer(texts, 300, prefix_space=True)
    model = tiny_causal("llama", len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edits_file(folder: Path) -> Path:
    """The edits as JSON Lines."""
    file = folder / "edits.jsonl"
    write_edits(file, TinyEdits().load())
    return file
