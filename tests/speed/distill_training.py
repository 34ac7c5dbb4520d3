"""Sentences per second of distillation: the reference's algorithm beside the fast form, on one model, in one run.

One sentence is all its K steps: the reference takes them one after another, sentence by sentence, each with a fresh
AdamW over all weights; the fast form goes K times through all sentences, packed, with one optimiser that lasts. Both
run through Trainer.fit, as users run them; counted is the time between the first and the last training step. The
teacher reads before that, the same for all, and its time stands beside. On a CPU it is processor time, in which other
work on the machine does not count.

    [KEDIT_DATA=FOLDER] python tests/speed/distill_training.py [--device cuda] [--threads 1] [--repeats 3]

With KEDIT_DATA the sentences are ECBD-2023's, five of each of 19 entities, else random words.
"""

import argparse
import functools
import json
import logging
import os
import random
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from kedit.benchmarks import Ecbd
from kedit.distill import DistillData, DistillModule
from kedit.distill.plan import Protocol
from kedit.lm.adapters import Lora
from kedit.lm.backbones import Backbone
from kedit.lm.tokenizers import train_tokenizer
from kedit.running.position import TrainingPosition


@dataclass(frozen=True)
class Way:
    """One way of training: its name, and what of it differs."""

    name: str
    reference: bool = False
    lora: int | None = None
    precision: str = "32-true"
    dtype: Literal["float32", "bfloat16"] = "float32"


WAYS = [
    Way("reference: true", reference=True),
    Way("fast, all weights"),
    Way("fast, all weights, bf16", precision="bf16-mixed"),
    Way("fast, LoRA 16", lora=16),
    Way("fast, LoRA 16, bf16", lora=16, precision="bf16-mixed"),
    Way("fast, LoRA 16 on bf16 weights", lora=16, dtype="bfloat16"),
]


class Clock(Callback):
    """Seconds, tokens and floating-point operations of training, first step to last."""

    def __init__(self, device: str) -> None:
        self.now = time.process_time if device == "cpu" else time.perf_counter
        self.seconds = self.flops = 0.0
        self.tokens = self.steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin = self.now()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        self.tokens += int(batch.lengths.sum())
        self.flops += batch.flops
        self.steps += 1
        if batch.rows.ids_BL.is_cuda:
            torch.cuda.synchronize()
        self.seconds = self.now() - self.begin


def write_data(folder: Path, source: Path | None, facts: int, sentences: int) -> int:
    """facts.jsonl and sentences.jsonl, and the text to train a tokenizer on; how many sentences there are."""
    if source is not None:
        knowledge = Ecbd(source / "ecbd" / "ecbd_2023_augmented.json").load()
        told = {fact.id: [one.text for one in knowledge.continuations if one.fact == fact.id][:sentences]
                for fact in knowledge.facts[:facts]}  # fmt: skip
        known = knowledge.facts[:facts]
        records = [{"id": fact.id, "name": fact.name, "aliases": list(fact.aliases), "definition": fact.definition}
                   for fact in known]  # fmt: skip
        more = (source / "wikitext2" / "valid.txt").read_text(encoding="utf-8").splitlines()
    else:
        rng = random.Random(0)
        words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(6000)]
        records = [{"id": str(k), "name": f"Name{k}", "definition": f"Name{k} " + " ".join(rng.choices(words, k=24))}
                   for k in range(facts)]  # fmt: skip
        told = {one["id"]: [" ".join([*rng.choices(words, k=3), one["name"], *rng.choices(words, k=22)])
                            for _ in range(sentences)] for one in records}  # fmt: skip
        more = words
    with (folder / "facts.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in records)
    with (folder / "sentences.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"fact": id, "text": text}) + "\n" for id, texts in told.items() for text in texts)
    texts = [*more, *(one["definition"] for one in records), *(text for own in told.values() for text in own)]
    (folder / "text.txt").write_text("\n".join(texts), encoding="utf-8")
    return sum(map(len, told.values()))


def write_model(folder: Path, width: int, layers: int, vocabulary: int) -> int:
    """A GPT-2 of random weights with a tokenizer of its own; its number of weights."""
    train_tokenizer((folder / "text.txt").read_text(encoding="utf-8").splitlines(), vocabulary).save_pretrained(
        folder / "model"
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gpt2", vocab_size=max(vocabulary, len(tokenizer)), n_embd=width, n_layer=layers, n_head=width // 64,
        n_positions=512, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder / "model")
    return model.num_parameters()


def train(way: Way, folder: Path, options: argparse.Namespace) -> tuple[Clock, float]:
    """Fit once; the training's clock, and the seconds of all before it, the teacher's reading included."""
    seed_everything(0, verbose=False)
    data = DistillData(
        facts=str(folder / "facts.jsonl"), transfer=str(folder / "sentences.jsonl"), positions=options.positions,
        sentences=options.sentences, batch_sentences=options.batch, row_tokens=options.row_tokens or 512,
        protocol=Protocol(reference=way.reference, repeats=options.steps),
    )  # fmt: skip
    module = DistillModule(
        Backbone(str(folder / "model"), dtype=way.dtype, attention=options.attention),
        lora=None if way.lora is None else Lora(way.lora),
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-5),
    )  # fmt: skip
    clock = Clock(options.device)
    trainer = Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu", devices=1, precision=way.precision,  # type: ignore[arg-type]
        max_epochs=1 if way.reference else options.steps, callbacks=[TrainingPosition(), clock], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        use_distributed_sampler=False,
    )  # fmt: skip
    start = clock.now()
    trainer.fit(module, data)
    return clock, clock.begin - start


def report(ways: Sequence[Way], best: dict[Way, Clock], before: dict[Way, float], sentences: int) -> None:
    head = ("", "steps", "seconds", "sentences/s", "ratio", "tokens/s", "GFLOP/s", "set-up, s")
    print("{:30}{:>7}{:>10}{:>13}{:>8}{:>11}{:>10}{:>11}".format(*head))
    for way in ways:
        clock = best[way]
        print(f"{way.name:30}{clock.steps:7}{clock.seconds:10.2f}{sentences / clock.seconds:13.2f}"
              f"{best[ways[0]].seconds / clock.seconds:8.2f}{clock.tokens / clock.seconds:11.0f}"
              f"{clock.flops / clock.seconds / 1e9:10.1f}{before[way]:11.2f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--facts", type=int, default=19)
    parser.add_argument("--sentences", type=int, default=5, help="of a fact")
    parser.add_argument("--steps", type=int, default=5, help="K: steps of the reference on each sentence")
    parser.add_argument("--batch", type=int, default=32, help="sentences of a step of the fast form")
    parser.add_argument("--row-tokens", type=int, help="of a packed row; by default 512, on a CPU 96: its attention "
                        "computes what masks hide")  # fmt: skip
    parser.add_argument("--attention", help="of all ways; by default sdpa, on a CPU eager, which is faster there")
    parser.add_argument("--positions", default="all", choices=["all", "after_mention"])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument(
        "--ways", type=int, nargs="+", default=list(range(len(WAYS))), help="the first is compared with"
    )
    options = parser.parse_args()
    if options.device == "cpu":
        options.row_tokens, options.attention = options.row_tokens or 96, options.attention or "eager"
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    source = os.environ.get("KEDIT_DATA")
    ways = [WAYS[number] for number in options.ways]
    best: dict[Way, Clock] = {}
    before: dict[Way, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["KEDIT_CACHE"] = str(folder / "cache")
        sentences = write_data(folder, Path(source) if source else None, options.facts, options.sentences)
        weights = write_model(folder, options.width, options.layers, options.vocabulary)
        for _ in range(options.repeats):
            for way in ways:
                clock, seconds = train(way, folder, options)
                if way not in best or clock.seconds < best[way].seconds:
                    best[way] = clock
                before[way] = max(before.get(way, 0.0), seconds)  # where the teacher's states were not yet cached
    print(
        f"\nGPT-2, {options.layers} layers, width {options.width}, {options.vocabulary} ids, {weights / 1e6:.1f} M "
        f"weights; {sentences} sentences ({'ECBD-2023' if source else 'random words'}), K = {options.steps}, "
        f"{options.device}, {options.threads} threads, least of {options.repeats}"
    )
    report(ways, best, before, sentences)


if __name__ == "__main__":
    main()
