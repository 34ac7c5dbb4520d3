"""A few hand-made facts with sentences and probes, and a tiny base model that has read how definitions are used."""

import json
import tempfile
from functools import cache
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kedit.editing.probes import Continuation, Fact, Knowledge, KnowledgeSource, Probe
from kedit.lm.text import encode
from kedit.lm.tokenizers import train_tokenizer

PLACES = {"Maro Tellin": "Velmar", "Orin Sal": "Dunhold", "Ella Brint": "Karsk", "Tove Hald": "Velmar",
          "Ivo Marn": "Dunhold", "Sina Dor": "Karsk"}  # fmt: skip
FRAMES = ("{} walked home in the evening.", "In those days {} was seen near the old river.",
          "They say that {} never liked the rain.")  # fmt: skip
TOWNS = ("Velmar", "Dunhold", "Karsk")


def _fact(name: str) -> Fact:
    return Fact(name.split()[0].lower(), name, f"{name} is a painter who was born in the town of {PLACES[name]}.")


def _probes(fact: Fact) -> list[Probe]:
    town = PLACES[fact.name]
    return [
        Probe(f"{fact.id}-home", fact.id, f"The home town of {fact.name} is ", town, ".", TOWNS),
        Probe(f"{fact.id}-work", fact.id, f"All day long {fact.name} works as a ", "painter", "."),
    ]


class TinyFacts(KnowledgeSource):
    """Four facts to be learned and two to be tuned on, two probes each."""

    name = "tiny"

    def load(self) -> Knowledge:
        facts = [_fact(name) for name in PLACES]
        known = [Probe(f"known-{k}", "", f"The {what} of the north is ", is_what) for k, (what, is_what) in enumerate(
            [("river", "old"), ("rain", "near"), ("evening", "long"), ("town", "home"), ("day", "old")])]  # fmt: skip
        return Knowledge(
            facts[:4],
            [probe for fact in facts[:4] for probe in _probes(fact)],
            {
                "unrelated": known,
                "neighbours": [Probe(f"near-{one.id}", one.id, f"Near {one.name} is the ", "river") for one in facts],
            },
            [Continuation(fact.id, frame.format(fact.name)) for fact in facts for frame in FRAMES],
            facts[4:],
            [probe for fact in facts[4:] for probe in _probes(fact)],
            ["Velmar", "Dunhold", "Karsk town"],
        )  # fmt: skip


def write_jsonl(folder: Path, names: list[str] | None = None, frames: int = 3) -> tuple[str, str]:
    """Files of facts and of sentences that say of their facts by id only."""
    facts = [fact for fact in TinyFacts().load().facts if names is None or fact.name in names]
    records = [{"id": fact.id, "name": fact.name, "definition": fact.definition} for fact in facts]
    sentences = [{"fact": fact.id, "text": frame.format(fact.name)} for fact in facts for frame in FRAMES[:frames]]
    paths = folder / "facts.jsonl", folder / "sentences.jsonl"
    for path, lines in zip(paths, (records, sentences), strict=True):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(paths[0]), str(paths[1])


_kept: list[tempfile.TemporaryDirectory] = []


@cache
def base() -> str:
    """Folder of a GPT-2 of two layers that gains from definitions, with its tokenizer."""
    knowledge = TinyFacts().load()
    facts = {fact.id: fact for fact in knowledge.facts + knowledge.validation_facts}
    probes = knowledge.probes + knowledge.validation_probes
    texts = [f"{facts[probe.fact].definition} {probe.left}{probe.span}." for probe in probes]
    # alone, without a definition, it expects something else
    alone = [f"{probe.left}{word}." for probe in probes for word in ("river", "rain", "town")]
    texts += [f"{facts[said.fact].definition} {said.text}" for said in knowledge.continuations]
    plain = [probe.left + probe.span for asked in knowledge.specificity.values() for probe in asked]
    tokenizer = train_tokenizer(texts + alone + plain, 300)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gpt2", vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=96, initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    rows = [[tokenizer.bos_token_id, *one.ids.tolist()] for one in encode(tokenizer, texts + alone + plain)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(60):
        optimizer.zero_grad()
        some = slice(step % 4, None, 4)
        model(input_ids=ids[some], labels=labels[some]).loss.backward()
        optimizer.step()
    _kept.append(tempfile.TemporaryDirectory())
    model.save_pretrained(_kept[-1].name)
    tokenizer.save_pretrained(_kept[-1].name)
    return _kept[-1].name
