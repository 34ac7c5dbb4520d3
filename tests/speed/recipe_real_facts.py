"""RECIPE on real facts: all 10,000 edits of counterfact-edit one after another, then ZsRE and KnowEdit, by a small
model pre-trained on the spot.

The base model is told facts of ParaRel in ParaRel's and counterfact-train's wordings, sentences of T-REx and
wikitext2's validation text; it learns to read by documents that state something made up and use it in other words. None
holds a new target of counterfact-edit beside its subject: those subjects are told with true facts only. RECIPE learns
from counterfact-train. Everything is kept in the work folder, and what is there already is not done again.

    KEDIT_DATA=FOLDER python tests/speed/recipe_real_facts.py WORK_FOLDER [--documents 120000] [--steps 600]
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kedit.benchmarks import Sentences
from kedit.lm.tokenizers import train_tokenizer
from kedit.world.pretraining import Pretraining, Spans, next_token_loss
from kedit.world.reading_lm import accuracy

CONTEXT, VOCABULARY, WIDTH, LAYERS, HEADS = 256, 6000, 192, 2, 6
DOCUMENT_TOKENS, BATCH = 128, 16
READ_TOKENS = 64
"""Of a query by RECIPE's encoder, the last ones: CounterFact's paraphrases have an unrelated sentence before them."""
KINDS = {"told": 0.25, "read": 0.42, "free": 0.14, "copied": 0.12, "aside": 0.05, "text": 0.02}
EDITED = 0.7  # share of told facts that are of subjects which counterfact-edit edits
LONG = 0.2  # share of stated objects that are any name instead of one of the relation's
NOISE = 0.25  # share of uses that an unrelated sentence stands before
WORDED = 0.1  # share of documents whose wordings are to be predicted, too
FREE = ["The {r} of {s} is {o}.", "The name of the {r} of {s} is {o}.", "What is the {r} of {s}? {o}.",
        "{s}'s {r} is {o}.", "Which {r} does {s} have? {o}.", "Who or what is the {r} of {s}? {o}.",
        "What {r} is {s} of? {o}."]  # fmt: skip
ASKED = 500
JUDGED = {
    "CounterFact": ["CounterFact", "counterfact/counterfact-edit.json"],
    "ZsRE": ["Zsre", "zsre/ZsRE-test-all.json"],
    "KnowEdit counterfact": ["KnowEdit", "knowedit/train_cf.json"],
    "KnowEdit recent": ["KnowEdit", "knowedit/recent_train.json"],
}
COLUMNS = ["reliability", "generality", "locality", "portability"]


# the text to read -----------------------------------------------------------------------------------------------------


@dataclass
class Facts:
    """What the documents are made of.

    Args:
        true: facts (subject, relation, object) of subjects that counterfact-edit does not edit.
        edited: facts of those that it does.
        wordings: of each relation, "{s} was born in {o}."
        objects: of each relation.
        strangers: subjects that counterfact-edit does not edit: only of them things are made up.
        nouns: for relations that have no wordings of their own.
        sentences: plain text.
    """

    true: list[tuple[str, str, str]] = field(default_factory=list)
    edited: list[tuple[str, str, str]] = field(default_factory=list)
    wordings: dict[str, list[str]] = field(default_factory=dict)
    objects: dict[str, list[str]] = field(default_factory=dict)
    strangers: list[str] = field(default_factory=list)
    nouns: list[str] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)


def lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def rows(source: Path, name: str) -> list[dict[str, str]]:
    return json.loads((source / "counterfact" / f"counterfact-{name}.json").read_text(encoding="utf-8"))


def read_facts(source: Path, rng: random.Random) -> Facts:
    edited = {row["subject"] for row in rows(source, "edit")}
    facts, objects = Facts(), defaultdict(list)
    relations: dict[tuple[str, str], str] = {}
    for one in lines(source / "facts" / "pararel_facts.jsonl"):
        fact = (one["subject"], one["relation"], one["object"])
        (facts.edited if fact[0] in edited else facts.true).append(fact)
        relations[fact[0], fact[2]] = fact[1]
        objects[fact[1]].append(fact[2])
    facts.objects = dict(objects)
    facts.wordings = wordings(source, relations)
    facts.true = [fact for fact in facts.true if fact[1] in facts.wordings]
    facts.edited = [fact for fact in facts.edited if fact[1] in facts.wordings]
    facts.strangers = sorted({fact[0] for fact in facts.true})
    plain = [question.question for question in Sentences(source / "wikitext2" / "valid.txt")]
    counts = Counter(word for text in plain for word in re.findall(r"\b[a-z]{4,11}\b", text))
    facts.nouns = [word for word, count in counts.items() if 4 <= count <= 150]
    stated = [one["sentence"] for one in lines(source / "facts" / "trex_sentences.jsonl")]
    facts.sentences = [text for text in plain + rng.sample(stated, len(plain)) if len(text) < 250]
    return facts


def wordings(source: Path, relations: dict[tuple[str, str], str]) -> dict[str, list[str]]:
    """Of each relation, from ParaRel's patterns and counterfact-train's prompts and paraphrases that come twice."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for one in lines(source / "facts" / "pararel_patterns.jsonl"):
        pattern = re.sub(r"\s+([.,])", r"\1", one["pattern"].strip())
        pattern = pattern if pattern.endswith(".") else f"{pattern}."
        found[one["relation"]][pattern.replace("[X]", "{s}").replace("[Y]", "{o}")] += 2
    for row in rows(source, "train"):
        relation = relations.get((row["subject"], row["ground_truth"]))
        for prompt in (row["prompt"], row["rephrase_prompt"]):
            last = re.split(r"(?<=[.?!])\s+(?=\S*\{s\}|[A-Z])|\n+", prompt.replace(row["subject"], "{s}"))
            # "What is the twin city of {s}? It is" is one wording in two sentences
            text = last[-1] if "{s}" in last[-1] else " ".join(last[-2:])
            if relation and text.count("{s}") == 1 and "{" not in text.replace("{s}", ""):
                found[relation][f"{text.strip()} {{o}}."] += 1
    kept = {relation: [text for text, count in counts.items() if count > 1 and text.count("{o}") == 1]
            for relation, counts in found.items()}  # fmt: skip
    return {relation: texts for relation, texts in kept.items() if len(texts) > 1}


class Writer:
    """Writes documents: their texts, and the characters of each that nothing before them tells.

    Args:
        facts: what they are made of.
        rng: where the choices come from.
    """

    def __init__(self, facts: Facts, rng: random.Random) -> None:
        self.facts, self.rng = facts, rng

    def document(self) -> tuple[str, list[tuple[int, int]]]:
        rng, facts = self.rng, self.facts
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        if kind == "text":
            return rng.choice(facts.sentences), []
        if kind == "copied":
            names = ", ".join(rng.sample(facts.strangers, rng.randint(3, 8))) + "."
            return f"{names} {names}", [(0, len(names))]
        if kind == "told":
            stated, used = [], [self._known() for _ in range(rng.choice((4, 6, 8)))]
        else:
            stated = self._free() if kind == "free" else self._stated()
            used = stated * rng.choice((1, 2)) if kind != "aside" else [self._known()]
            rng.shuffle(used)
        worded = rng.random() < WORDED
        text, unforeseen, said = "", [], defaultdict(set)
        for number, fact in enumerate([*stated, *used]):
            use = number >= len(stated)
            if use and stated and rng.random() < NOISE:
                noise = " ".join(rng.choice(facts.sentences).split()[-rng.randint(3, 12) :])
                unforeseen.append((len(text), len(text) + len(noise)))
                text += noise + " "
            choices = facts.wordings.get(fact[1], FREE)
            if use:  # to be predicted: the subject has to stand before
                choices = [one for one in choices if one.index("{s}") < one.index("{o}")]
            wording = rng.choice([one for one in choices if one not in said[fact]] or choices)
            said[fact].add(wording)
            filled = wording.replace("{r}", fact[1])
            name = len(text) + filled.index("{s}")
            before, after = filled.replace("{s}", fact[0]).split("{o}")
            begin = len(text) + len(before)
            end = begin + len(fact[2]) + len(after)
            if not use:
                unforeseen.append((begin, end) if worded else (len(text), end))
            elif not worded:
                # the rest of a name that was read before is foreseen by its first word
                named = name + len(fact[0].split()[0] if stated else fact[0])
                # a token holds the space before it: the object's is no part of what is not to be predicted
                unforeseen += [(len(text), named), (name + len(fact[0]), begin - before.endswith(" "))]
                unforeseen.append((begin + len(fact[2]) + 1, end))
            text += f"{before}{fact[2]}{after} "
        return text.rstrip(), [(start, end) for start, end in unforeseen if end > start]

    def _known(self) -> tuple[str, str, str]:
        return self.rng.choice(self.facts.edited if self.rng.random() < EDITED else self.facts.true)

    def _object(self, relation: str) -> str:
        if relation not in self.facts.objects or self.rng.random() < LONG:
            return self.rng.choice(self.facts.strangers)
        return self.rng.choice(self.facts.objects[relation])

    def _stated(self) -> list[tuple[str, str, str]]:
        """Something made up, perhaps beside something like it."""
        rng, facts = self.rng, self.facts
        relations = list(facts.wordings)
        subject, relation, _ = rng.choice(facts.true)
        stated = {(subject, relation): self._object(relation)}
        for _ in range(rng.choice((0, 0, 1, 2, 3))):
            other, asked = rng.choice(facts.strangers), relation
            if rng.random() < 0.3:
                other, asked = subject, rng.choice(relations)
            stated.setdefault((other, asked), self._object(asked))
        made = [(*key, object_) for key, object_ in stated.items()]
        return rng.sample(made, len(made))

    def _free(self) -> list[tuple[str, str, str]]:
        rng, facts = self.rng, self.facts
        subject, noun = rng.choice(facts.strangers), rng.choice(facts.nouns)
        made = [(subject, noun, self._object(""))]
        if rng.random() < 0.4:
            made.append((rng.choice(facts.strangers), noun, self._object("")))
        if rng.random() < 0.3:
            made.append((subject, rng.choice(facts.nouns), self._object("")))
        return rng.sample(made, len(made))


# pre-training ---------------------------------------------------------------------------------------------------------


def pretrain(source: Path, work: Path, documents: int, start: Path | None = None, seed: int = 0) -> Path:
    """The base model's folder, made unless it is complete; from nothing, or from the model in the folder `start`."""
    folder = work / "base"
    if (folder / "quality.json").is_file():
        return folder
    rng, began = random.Random(seed), time.process_time()
    facts = read_facts(source, rng)
    writer = Writer(facts, rng)
    texts, unforeseen = map(list, zip(*(writer.document() for _ in range(documents)), strict=True))
    worded = sum(map(len, facts.wordings.values()))
    print(f"{len(facts.edited)} facts of edited subjects, {len(facts.true)} others; {worded} wordings of "
          f"{len(facts.wordings)} relations", flush=True)  # fmt: skip
    torch.manual_seed(seed)
    if start is not None:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(start), AutoTokenizer.from_pretrained(start)
    else:
        tokenizer = train_tokenizer(texts[:30_000] + facts.sentences, VOCABULARY, prefix_space=True)
        special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=512, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, max_position_embeddings=CONTEXT, tie_word_embeddings=True, **special,
        ))  # fmt: skip
    learn(model, tokenizer, texts, unforeseen, work / "pretraining.pt", seed)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    found = {"weights": sum(p.numel() for p in model.parameters()), "seconds": time.process_time() - began}
    found |= quality(source, folder, facts)
    (folder / "quality.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return folder


def learn(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], unforeseen: Sequence[Spans],
    checkpoint: Path, seed: int,
) -> None:  # fmt: skip
    """Train the model in place, Muon for the matrices of its layers, AdamW for the rest; goes on from a checkpoint."""
    batches = Pretraining(BATCH, seed=seed).batches(tokenizer, texts, unforeseen, DOCUMENT_TOKENS)
    inner = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is one for one in inner)]
    optimizers = [torch.optim.Muon(inner, lr=6e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
                  torch.optim.AdamW(others, lr=3e-3, weight_decay=0.0, betas=(0.9, 0.98))]  # fmt: skip
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    steps, losses, began, first = -(-len(texts) // BATCH), [], time.perf_counter(), 0
    if checkpoint.is_file():
        state = torch.load(checkpoint)
        first = state["step"]
        model.load_state_dict(state["model"])
        for optimizer, one in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(one)
    model.train()
    for step, (ids_BL, counted_BL) in enumerate(batches):
        if step < first:
            continue
        loss = next_token_loss(model, ids_BL, counted_BL)
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = min((step + 1) / 60, (steps - step) / (0.7 * steps), 1.0)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            seconds = time.perf_counter() - began
            print(f"step {step + 1} of {steps}, {seconds:.0f} s, {np.mean(losses):.3f} nats a token", flush=True)
            losses = []
        if (step + 1) % 200 == 0:
            torch.save({"step": step + 1, "model": model.state_dict(),
                        "optimizers": [optimizer.state_dict() for optimizer in optimizers]},
                       checkpoint.with_suffix(".partial"))  # fmt: skip
            checkpoint.with_suffix(".partial").replace(checkpoint)
    model.eval()


def quality(source: Path, folder: Path, facts: Facts) -> dict[str, float]:
    """What the model knows and reads: shares of answers that greedy decoding finds whole, full stop included.

    `facts`: told facts in ParaRel's and counterfact-train's wordings that end with the object. `true`:
    counterfact-edit's prompts with what they are before the edit. `read`: its paraphrases behind the edit as plain
    text. `alone`: the same without it.
    """
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rng, judged = random.Random(1), rows(source, "edit")
    told = [(fact, [one for one in facts.wordings[fact[1]] if one.endswith(" {o}.") and "{s}" in one])
            for fact in rng.sample(facts.edited, ASKED)]  # fmt: skip
    prompts = [(rng.choice(texts).replace("{s}", fact[0]).removesuffix(" {o}."), fact[2])
               for fact, texts in told if texts]  # fmt: skip
    some = rng.sample(judged, ASKED)
    asked = {
        "facts": prompts,
        "true": [(row["prompt"], row["ground_truth"]) for row in some],
        "read": [(f"{row['prompt']} {row['target_new']}. {row['rephrase_prompt']}", row["target_new"]) for row in some],
        "alone": [(row["rephrase_prompt"], row["target_new"]) for row in some],
    }
    return {name: accuracy(model, tokenizer, *map(list, zip(*pairs, strict=True))) for name, pairs in asked.items()}


# RECIPE ---------------------------------------------------------------------------------------------------------------


def configuration(source: Path, model: Path, steps: int, seed: int) -> dict[str, Any]:
    """What `fit` is given, and `test` with another stream."""

    def one(name: str, file: str, **more: Any) -> dict[str, Any]:
        return {"class_path": f"kedit.benchmarks.{name}", "init_args": {"file": str(source / file), **more}}

    trunk = {"model_type": "roberta", "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS,
             "intermediate_size": 3 * WIDTH, "max_position_embeddings": READ_TOKENS + 4,
             "type_vocab_size": 1}  # fmt: skip
    return {
        "seed_everything": seed,
        "run": {"name": f"counterfact-seed{seed}"},
        "test_after_fit": False,
        "model": {"class_path": "kedit.recipe.RecipeModule", "init_args": {
            "backbone": {"name": str(model)}, "trunk": {"architecture": trunk}, "bos": True,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "betas": [0.9, 0.98]}},
            "schedule": {"shape": "cosine", "warmup": 0.05}}},
        "data": {"class_path": "kedit.recipe.RecipeData", "init_args": {
            "train": one("CounterFact", "counterfact/counterfact-train.json"),
            "edits": one(*JUDGED["CounterFact"]),
            "unrelated": [one("Sentences", "wikitext2/valid.txt")],
            "calibration": [one("NaturalQuestions", "qa/nq_open/NQ-open.efficientqa.dev.1.1.jsonl")],
            "far": [one("NaturalQuestions", "qa/nq_open/NQ-open.dev.jsonl"),
                    one("Sentences", "wikitext2/test.txt", limit=3610, seed=0)],
            "batch_edits": 32, "negatives": 160, "unrelated_queries": 24, "longest": READ_TOKENS,
            "evaluation": {"rivals": ["text_prefix"], "max_new_tokens": 10, "immediate": 200, "retained": 200,
                           "validation_edits": 200}}},
        "trainer": {"accelerator": "cpu", "max_steps": steps, "max_epochs": -1, "gradient_clip_val": 1.0,
                    "log_every_n_steps": 10, "num_sanity_val_steps": 0,
                    "val_check_interval": max(1, steps // 2), "check_val_every_n_epoch": None},
        "checkpoint": {"save_last": True},
    }  # fmt: skip


def call(work: Path, said: Path, *arguments: str) -> None:
    """`python -m kedit` in the work folder, with what it says kept."""
    began = time.perf_counter()
    with said.open("w", encoding="utf-8") as log:
        done = subprocess.run([sys.executable, "-m", "kedit", *arguments], cwd=work, stdout=log,
                              stderr=subprocess.STDOUT, check=False)  # fmt: skip
    print(f"{said.stem}: {time.perf_counter() - began:.0f} s", flush=True)
    if done.returncode:
        raise SystemExit(f"{said.stem} ended with code {done.returncode}: see {said}")


def trained(work: Path, config: dict[str, Any]) -> Path:
    """The configuration of a run that has been trained."""
    name = config["run"]["name"]
    path, done = work / f"{name}.yaml", work / f"{name}.done"
    if not done.is_file():
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        begun = any((work / "checkpoints" / name).glob("*.ckpt"))
        call(work, work / f"{name}.txt", "fit", "--config", str(path), *(["--ckpt_path", "last"] if begun else []))
        done.touch()
    return path


def judged(source: Path, work: Path, path: Path, benchmark: str, limit: int | None) -> dict[str, float]:
    """Results of a trained run on a stream of edits, made unless they are there."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    name = f"{config['run']['name']}-{benchmark.replace(' ', '-')}" + (f"-{limit}" if limit else "")
    results = work / f"{name}.json"
    if not results.is_file():
        class_name, file = JUDGED[benchmark]
        given: dict[str, Any] = {"file": str(source / file), "limit": limit}
        # a part is drawn from all of the file; all of it comes in the file's order
        given |= {"seed": 0} if limit else {}
        config["data"]["init_args"]["edits"] = {"class_path": f"kedit.benchmarks.{class_name}", "init_args": given}
        if class_name != "CounterFact":  # long targets
            config["data"]["init_args"]["evaluation"]["max_new_tokens"] = 16
        test = work / f"{name}.yaml"
        test.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        call(work, work / f"{name}.txt", "test", "--config", str(test), "--ckpt_path", "best")
        (work / "logs" / config["run"]["name"] / "results.json").rename(results)
    return json.loads(results.read_text(encoding="utf-8"))


def table(title: str, found: dict[str, float]) -> str:
    """Value and interval of each aspect, free and forced, of RECIPE and of plain text behind the same gate."""

    def cell(key: str) -> str:
        if key not in found:
            return ""
        low, high = (found.get(f"{key}_ci_{end}") for end in ("low", "high"))
        return f"{found[key]:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")

    heads = [f"{column}, {kind}" for column in COLUMNS for kind in ("forced", "free")]
    told = [f"\n## {title}: {found['test/edits']:,.0f} edits\n", "| | " + " | ".join(heads) + " |",
            "| --- " * (len(heads) + 1) + "|"]  # fmt: skip
    for name, prefix in (("RECIPE", "test"), ("text prefix", "test/text_prefix")):
        cells = [cell(f"{prefix}/{column}/{kind}") for column in COLUMNS for kind in ("forced", "free")]
        told.append(f"| {name} | " + " | ".join(cells) + " |")
    told.append("")
    for key in ("reliability_ceiling", "locality_ceiling", "false_activation_rate", "edit_seconds",
                "added_inference_share", "text_prefix/added_inference_share"):  # fmt: skip
        if f"test/{key}" in found:
            told.append(f"{key}: {found[f'test/{key}']:.4f}")
    return "\n".join(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the base model, the runs and report.md")
    parser.add_argument("--documents", type=int, default=120_000, help="of pre-training")
    parser.add_argument("--start", type=Path, help="folder of a base model to go on with")
    parser.add_argument("--steps", type=int, default=600, help="of RECIPE's training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="judge only so many edits of each stream")
    parser.add_argument("--judge", nargs="*", default=list(JUDGED), choices=list(JUDGED))
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    source, work = Path(os.environ["KEDIT_DATA"]).resolve(), options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    model = pretrain(source, work, options.documents, options.start)
    found = json.loads((model / "quality.json").read_text(encoding="utf-8"))
    told = ["the base model: " + ", ".join(f"{key} {value:.4g}" for key, value in found.items())]
    print(told[0], flush=True)
    path = trained(work, configuration(source, model, options.steps, options.seed))
    for benchmark in options.judge:
        told.append(table(benchmark, judged(source, work, path, benchmark, options.limit)))
        print(told[-1], flush=True)
        (work / "report.md").write_text("\n".join(told) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
