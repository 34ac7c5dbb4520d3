"""RECIPE on real facts: all 10,000 edits of counterfact-edit one after another, then ZsRE and KnowEdit, by a small
model pre-trained on the spot.

The base model is told ParaRel's facts, and learns to read by documents that state something made up and use it in other
words, in counterfact-train's wordings; what is made up is never of a subject that counterfact-edit edits. RECIPE learns
from counterfact-train. Everything is kept in the work folder, and what is there already is not done again.

    KEDIT_DATA=FOLDER python tests/speed/recipe_real_facts.py WORK_FOLDER [--steps 6000] [--recipe_steps 700]
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
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from kedit.lm.tokenizers import train_tokenizer
from kedit.world.pretraining import Pretraining
from kedit.world.reading_lm import accuracy

VOCABULARY, WIDTH, LAYERS, HEADS = 4000, 128, 2, 4
HEAD_WIDTH = 64  # what a head copies has to fit
BATCH, LEARNING_RATE, DOCUMENT_TOKENS = 32, 4e-3, 160
READ_TOKENS = 64
"""Of a query by RECIPE's encoder, the last ones: CounterFact's paraphrases have an unrelated sentence before them."""
COPY_FIRST = 0.1  # share of documents, the first ones, that only teach to copy
COPIED, TOLD = 0.01, 0.12  # shares of the others
EDITED = 0.6  # share of told facts that are of subjects which counterfact-edit edits
STATED = (1, 1, 1, 1, 2, 2)  # facts that a document makes up
NOISE = 0.35  # share of paraphrases that keep the unrelated sentence before them
KNOWN = 0.5  # share of what is made up that is of subjects about which something else is told
FOREIGN = 0.12  # share of what is made up that is of relations which CounterFact has not
FORMS = ["The {r} of {s} is", "The name of the {r} of {s} is", "What is the {r} of {s}?", "{s}'s {r} is",
         "Which {r} does {s} have?", "Who is the {r} of {s}?", "What {r} does {s} belong to?"]  # fmt: skip
ASKED = 500
JUDGED = {
    "CounterFact": ["CounterFact", "counterfact/counterfact-edit.json"],
    "ZsRE": ["Zsre", "zsre/ZsRE-test-all.json"],
    "KnowEdit counterfact": ["KnowEdit", "knowedit/train_cf.json"],
    "KnowEdit recent": ["KnowEdit", "knowedit/recent_train.json"],
}
COLUMNS = ["reliability", "generality", "locality", "portability"]


# the text to read -----------------------------------------------------------------------------------------------------


def rows(source: Path, name: str) -> list[dict[str, str]]:
    return json.loads((source / "counterfact" / f"counterfact-{name}.json").read_text(encoding="utf-8"))


class Writer:
    """Writes documents, of wordings with {s} for the subject that end where the object stands.

    Attributes:
        told, edited: true facts (subject, relation, object) of all subjects, and of those that counterfact-edit edits.
        wordings: of each relation of true facts.

    Args:
        source: folder of the data.
        rng: where the choices come from.
    """

    def __init__(self, source: Path, rng: random.Random) -> None:
        self.rng, train = rng, rows(source, "train")
        edits = rows(source, "edit")
        judged = {row["subject"] for row in edits}
        new = {(row["subject"], row["target_new"]) for row in edits}
        with (source / "facts" / "pararel_facts.jsonl").open(encoding="utf-8") as file:
            facts = [(one["subject"], one["relation"], one["object"]) for one in map(json.loads, file)]
        relations = {(subject, object_): relation for subject, relation, object_ in facts}
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.pairs: list[tuple[str, str]] = []
        self.alike: dict[str, list[str]] = defaultdict(list)  # objects of each prompt
        self.known: dict[str, list[str]] = defaultdict(list)  # subjects of each prompt that may be told something else
        for row in train:
            prompt, paraphrase = (row[key].replace(row["subject"], "{s}") for key in ("prompt", "rephrase_prompt"))
            self.pairs.append((prompt, paraphrase))
            self.alike[prompt] += [row["target_new"], row["ground_truth"]]
            if row["subject"] not in judged:
                self.known[prompt].append(row["subject"])
            if relation := relations.get((row["subject"], row["ground_truth"])):
                counts[relation][prompt] += 1
        self.objects = [object_ for alike in self.alike.values() for object_ in alike]
        self.wordings = {relation: often for relation, found in counts.items()
                         if (often := [wording for wording, count in found.items() if count > 2])}  # fmt: skip
        # some new targets are true of their subjects
        self.told = [fact for fact in facts if fact[1] in self.wordings and (fact[0], fact[2]) not in new]
        self.edited = [fact for fact in self.told if fact[0] in judged]
        self.strangers = sorted(({fact[0] for fact in facts} | {row["subject"] for row in train}) - judged)
        text = (source / "wikitext2" / "valid.txt").read_text(encoding="utf-8")
        words = Counter(re.findall(r"\b[a-z]{4,11}\b", text))
        self.nouns = [word for word, count in words.items() if 4 <= count <= 150]

    def document(self) -> tuple[str, list[tuple[int, int]]]:
        """A text and the characters of it that are not to be predicted: all but used or known objects."""
        kind = self.rng.random()
        if kind < COPIED:
            return self.copied()
        if kind < COPIED + TOLD:
            known = [self.rng.choice(self.edited if self.rng.random() < EDITED else self.told) for _ in range(3)]
            return _written([(self.rng.choice(self.wordings[relation]), subject, object_, True)
                             for subject, relation, object_ in known])  # fmt: skip
        made = [self._made() for _ in range(self.rng.choice(STATED))]
        used = [(wording, subject, object_, True) for _, wording, subject, object_ in made]
        self.rng.shuffle(used)
        return _written([(prompt, subject, object_, False) for prompt, _, subject, object_ in made] + used)

    def copied(self) -> tuple[str, list[tuple[int, int]]]:
        """Names, twice."""
        names = [self.rng.choice(self.strangers if self.rng.random() < 0.6 else self.objects)
                 for _ in range(self.rng.randint(3, 6))]  # fmt: skip
        text = ", ".join(names) + "."
        return f"{text} {text}", [(0, len(text))]

    def _made(self) -> tuple[str, str, str, str]:
        """Two wordings, subject and object of something that is not so."""
        rng = self.rng
        if rng.random() < FOREIGN:
            noun = rng.choice(self.nouns)
            prompt, other = (form.replace("{r}", noun) for form in rng.sample(FORMS, 2))
            return (
                prompt,
                other,
                rng.choice(self.strangers),
                rng.choice(self.objects if rng.random() < 0.3 else self.strangers),
            )
        prompt, paraphrase = rng.choice(self.pairs)
        wording = prompt if rng.random() < 0.2 else self._shortened(paraphrase)
        subject = rng.choice(self.known[prompt] if self.known[prompt] and rng.random() < KNOWN else self.strangers)
        of = rng.choices((self.alike[prompt], self.objects, self.strangers), (2, 1, 1))[0]
        return prompt, wording, subject, rng.choice(of)

    def _shortened(self, paraphrase: str) -> str:
        """The paraphrase with less of the unrelated sentence before it, or with none."""
        ends = list(re.finditer(r"\. |\n", paraphrase[: paraphrase.index("{s}")]))
        start = ends[-1].end() if ends else 0
        before, wording = paraphrase[:start], paraphrase[start:]
        noise = before.split()[-self.rng.randint(3, 14) :] if self.rng.random() < NOISE else []
        return " ".join([*noise, wording])


def _written(sentences: list[tuple[str, str, str, bool]]) -> tuple[str, list[tuple[int, int]]]:
    text, unforeseen = "", []
    for wording, subject, object_, foreseen in sentences:
        start = len(text)
        text += f"{' ' if text else ''}{wording.replace('{s}', subject)}"
        before = len(text)  # a token holds the space before it
        text += f" {object_}."
        unforeseen.append((start, before if foreseen else len(text)))
    return text, unforeseen


# pre-training ---------------------------------------------------------------------------------------------------------


def pretrain(source: Path, work: Path, steps: int, seed: int = 0) -> Path:
    """The base model's folder, made unless it is complete."""
    folder = work / "base"
    if (folder / "quality.json").is_file():
        return folder
    began, writer = time.process_time(), Writer(source, random.Random(seed))
    print(f"{len(writer.edited)} facts of edited subjects of {len(writer.told)}, {len(writer.wordings)} relations; "
          f"{len(writer.pairs)} paraphrases, {len(writer.strangers)} strangers", flush=True)  # fmt: skip
    first = int(COPY_FIRST * steps) * BATCH
    documents = [writer.copied() if number < first else writer.document() for number in range(steps * BATCH)]
    texts, unforeseen = [text for text, _ in documents], [spans for _, spans in documents]
    tokenizer = train_tokenizer(texts[-20_000:], VOCABULARY, prefix_space=True)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, head_dim=HEAD_WIDTH, max_position_embeddings=256,
        tie_word_embeddings=True, **special,
    ))  # fmt: skip
    Pretraining(BATCH, LEARNING_RATE, weight_decay=0.01, seed=seed).run(
        model, tokenizer, texts, unforeseen, DOCUMENT_TOKENS
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    found = {"weights": sum(p.numel() for p in model.parameters()), "seconds": time.process_time() - began}
    found |= quality(source, folder, writer)
    (folder / "quality.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return folder


def quality(source: Path, folder: Path, writer: Writer) -> dict[str, float]:
    """What the model knows and reads: shares of answers that greedy decoding finds whole, full stop included.

    `facts`: told facts of edited subjects. `true`: counterfact-edit's prompts with what they are before the edit.
    `same`: its prompts behind the edit as plain text. `read`: its paraphrases behind it. `alone`: without it.
    """
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rng = random.Random(1)
    some = rng.sample(rows(source, "edit"), ASKED)
    edits = [f"{row['prompt']} {row['target_new']}. " for row in some]
    new = [row["target_new"] for row in some]
    told = rng.sample(writer.edited, ASKED)
    asked = {
        "facts": ([rng.choice(writer.wordings[relation]).replace("{s}", subject) for subject, relation, _ in told],
                  [object_ for *_, object_ in told]),
        "true": ([row["prompt"] for row in some], [row["ground_truth"] for row in some]),
        "same": ([edit + row["prompt"] for edit, row in zip(edits, some, strict=True)], new),
        "read": ([edit + row["rephrase_prompt"] for edit, row in zip(edits, some, strict=True)], new),
        "alone": ([row["rephrase_prompt"] for row in some], new),
    }  # fmt: skip
    return {name: accuracy(model, tokenizer, *pair) for name, pair in asked.items()}


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
            "far": [one("NaturalQuestions", "qa/nq_open/NQ-open.dev.jsonl")],
            "batch_edits": 32, "negatives": 160, "unrelated_queries": 24, "longest": READ_TOKENS, "answer_end": ".",
            "evaluation": {"rivals": ["text_prefix"], "max_new_tokens": 10, "immediate": 200, "retained": 200,
                           "validation_edits": 200}}},
        "trainer": {"accelerator": "cpu", "max_steps": steps, "max_epochs": -1, "gradient_clip_val": 1.0,
                    "log_every_n_steps": 10, "num_sanity_val_steps": 0,
                    "val_check_interval": max(1, steps // 3), "check_val_every_n_epoch": None},
        "checkpoint": {"monitor": "val/score", "mode": "max", "save_last": True},
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
    parser.add_argument("--steps", type=int, default=6000, help="of pre-training")
    parser.add_argument("--recipe_steps", type=int, default=700, help="of RECIPE's training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="judge only so many edits of each stream")
    parser.add_argument("--judge", nargs="*", default=list(JUDGED), choices=list(JUDGED))
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    source, work = Path(os.environ["KEDIT_DATA"]).resolve(), options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    model = pretrain(source, work, options.steps)
    found = json.loads((model / "quality.json").read_text(encoding="utf-8"))
    told = ["the base model: " + ", ".join(f"{key} {value:.4g}" for key, value in found.items())]
    print(told[0], flush=True)
    path = trained(work, configuration(source, model, options.recipe_steps, options.seed))
    for benchmark in options.judge:
        told.append(table(benchmark, judged(source, work, path, benchmark, options.limit)))
        print(told[-1], flush=True)
        (work / "report.md").write_text("\n".join(told) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
