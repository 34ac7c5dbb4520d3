"""Context distillation on real text: ECBD-2023 and Entity Inferences whole, by a small model pre-trained on the spot.

The model reads sentences of T-REx that name one entity side by side, facts of ParaRel told in several wordings, of
made-up pairings too, so that only the text before says who is what, and wikitext2's validation text; nothing of the
benchmarks. Everything is kept in the work folder, and an interrupted run goes on.

Every entity of both benchmarks is judged. Learning rates are tuned on a fifth of them, for distillation and for each
way of fine-tuning alike, and these entities are judged too: an advantage that all share.

    KEDIT_DATA=FOLDER python tests/speed/distill_real_text.py WORK_FOLDER [--threads 1] [--steps 1700]
"""

import argparse
import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import kedit.benchmarks
from kedit.editing.probes import Knowledge, KnowledgeSource
from kedit.lm.backbones import output_head
from kedit.lm.causal import pack, states
from kedit.lm.losses import linear_cross_entropy
from kedit.lm.packing import best_fit
from kedit.lm.text import encode
from kedit.lm.tokenizers import train_tokenizer

CONTEXT, VOCABULARY = 256, 6000
ARCHITECTURE = {
    "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 6, "max_position_embeddings": CONTEXT, "tie_word_embeddings": True,
}  # fmt: skip
HELD_OUT = 200
FILES = {"ecbd": ("Ecbd", "ecbd_2023_augmented.json"),
         "entity_inferences": ("EntityInferences", "entity_inferences_augmented.json")}  # fmt: skip
POSITIONS = {"ecbd": "after_mention", "entity_inferences": "all"}
TUNED_ON = 0.2
PASSES = 5
RATES = [3e-4, 1e-3, 3e-3, 1e-2]
RIVAL_RATES = [1e-4, 3e-4, 1e-3, 3e-3]
RIVALS = ["finetune", "finetune_last", "finetune_transfer"]
WAYS = ["base", "prepend", "random", *RIVALS, "edited"]


class Whole(KnowledgeSource):
    """A benchmark of which everything is judged, and a part of it is tuned on.

    Args:
        judged: the benchmark, whole.
        tuned: the same benchmark with a part kept for tuning.
    """

    name = "whole"

    def __init__(self, judged: KnowledgeSource, tuned: KnowledgeSource):
        self.judged, self.tuned = judged, tuned

    def load(self) -> Knowledge:
        kept = self.tuned.load()
        return replace(
            self.judged.load(), validation_facts=kept.validation_facts, validation_probes=kept.validation_probes
        )


# the text to read ---------------------------------------------------------------------------------------------------


def records(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def benchmark_sentences(source: Path) -> set[str]:
    """All sentences of the benchmarks, definitions included: none may be read."""
    kept = set()
    for path in sorted((source / "ecbd").glob("*.json")):
        for record in records(path):
            kept |= {record.get("context", ""), *record.get("augmented_probes", [])}
            probe = record["probe_sentences"]["template_0"]
            for label in probe.get("labels", [probe.get("label")]):
                span = re.sub(r" ?<extra_id_\d> ?", "", label)
                kept.add(probe["probe_sentence"].replace("<extra_id_0>", span))
    return {plain(sentence) for sentence in kept}


def plain(sentence: str) -> str:
    return re.sub(r"\W+", " ", sentence.lower()).strip()


def entity_documents(source: Path, rng: random.Random, most: int = 12) -> list[str]:
    """For each subject its sentences, one that begins with its name first, then some of its facts in short wordings."""
    forbidden, left_out = benchmark_sentences(source), 0
    sentences: dict[str, dict[str, None]] = defaultdict(dict)
    for record in records(source / "facts" / "trex_sentences.jsonl"):
        text = " ".join(record["sentence"].split())
        if plain(text) in forbidden:
            left_out += 1
        elif 40 <= len(text) <= 400:
            sentences[record["subject"]][text] = None
    told: dict[str, list[str]] = defaultdict(list)
    wordings = patterns(source)
    for record in records(source / "facts" / "pararel_facts.jsonl"):
        if record["relation"] in wordings:
            told[record["subject"]].append(
                filled(rng.choice(wordings[record["relation"]]), record["subject"], record["object"])
            )
    documents = []
    for subject in sorted(sentences.keys() | told.keys()):
        own = list(sentences.get(subject, ()))
        rng.shuffle(own)
        own = own[:most]
        own.sort(key=lambda text: not text.startswith(subject))
        documents.append(" ".join(own + told.get(subject, [])[:4]))
    print(f"{len(documents)} entities, {left_out} sentences left out that stand in a benchmark", flush=True)
    return documents


def patterns(source: Path) -> dict[str, list[str]]:
    found = defaultdict(list)
    for record in records(source / "facts" / "pararel_patterns.jsonl"):
        found[record["relation"]].append(re.sub(r"\s+([.,])", r"\1", record["pattern"]))
    return {relation: wordings for relation, wordings in found.items() if len(wordings) > 1}


def filled(pattern: str, subject: str, target: str) -> str:
    text = pattern.replace("[X]", subject).replace("[Y]", target).strip()
    return text if text.endswith(".") else text + "."


def reading_documents(source: Path, rng: random.Random, documents: int) -> list[str]:
    """Subjects with objects drawn at random, each told twice in different wordings: what comes second must be read."""
    wordings = patterns(source)
    objects: dict[str, list[str]] = defaultdict(list)
    subjects = []
    for record in records(source / "facts" / "pararel_facts.jsonl"):
        objects[record["relation"]].append(record["object"])
        subjects.append(record["subject"])
    made = []
    for _ in range(documents):
        first, second = [], []
        for _ in range(rng.randint(1, 4)):
            relation, subject = rng.choice(sorted(wordings)), rng.choice(subjects)
            target = rng.choice(objects[relation])
            one, other = rng.sample(wordings[relation], 2)
            first.append(filled(one, subject, target))
            second.append(filled(other, subject, target))
        rng.shuffle(second)
        made.append(" ".join(first + second))
    return made


def wikitext(source: Path) -> list[str]:
    lines = (source / "wikitext2" / "valid.txt").read_text(encoding="utf-8").splitlines()
    text = [re.sub(r" ([.,;:)'])", r"\1", line.strip().replace(" @-@ ", "-").replace("( ", "(")) for line in lines]
    return [line for line in text if len(line) > 100 and not line.startswith("=")]


# pre-training ---------------------------------------------------------------------------------------------------------


def pretrain(source: Path, work: Path, steps: int, rows_a_step: int = 4, seed: int = 0) -> Path:
    """The model's folder, trained unless it is complete; a checkpoint every 200 steps."""
    folder, checkpoint = work / "model", work / "pretraining.pt"
    if (folder / "quality.json").is_file():
        return folder
    rng = random.Random(seed)
    entities = entity_documents(source, rng)
    rng.shuffle(entities)
    held, entities = entities[:HELD_OUT], entities[HELD_OUT:]
    texts = entities + wikitext(source) + reading_documents(source, rng, 9000)
    if not (folder / "tokenizer.json").is_file():
        train_tokenizer(texts, VOCABULARY).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = packed_rows(tokenizer, texts, rng)
    tokens = sum(len(piece) for row in rows for piece in row)
    torch.manual_seed(seed)
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id,
                                  eos_token_id=tokenizer.eos_token_id, **ARCHITECTURE)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    inner = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is one for one in inner)]
    optimizers = [torch.optim.Muon(inner, lr=6e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
                  torch.optim.AdamW(others, lr=3e-3, weight_decay=0.0, betas=(0.9, 0.98))]  # fmt: skip
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    first, spent = 0, 0.0
    if checkpoint.is_file():
        state = torch.load(checkpoint)
        first, spent = state["step"], state["seconds"]
        model.load_state_dict(state["model"])
        for optimizer, one in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(one)
    size = sum(p.numel() for p in model.parameters())
    print(f"{size / 1e6:.2f} M weights, {tokens / 1e6:.2f} M tokens in {len(rows)} rows, "
          f"{steps * rows_a_step / len(rows):.2f} epochs", flush=True)  # fmt: skip
    start, losses = time.perf_counter() - spent, []
    for step in range(first, steps):
        chosen = [rows[index % len(rows)] for index in range(step * rows_a_step, (step + 1) * rows_a_step)]
        loss = nll(model, chosen)
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = min((step + 1) / 60, (steps - step) / (0.7 * steps), 1.0)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            seconds = time.perf_counter() - start
            print(f"step {step + 1} of {steps}, {seconds:.0f} s, {np.mean(losses):.3f} nats a token", flush=True)
            losses = []
        if (step + 1) % 200 == 0:
            torch.save({"step": step + 1, "seconds": time.perf_counter() - start, "model": model.state_dict(),
                        "optimizers": [optimizer.state_dict() for optimizer in optimizers]}, checkpoint)  # fmt: skip
    model.eval().save_pretrained(folder)
    quality = {"weights": size, "tokens_read": steps * rows_a_step * tokens // len(rows),
               "seconds": time.perf_counter() - start, **reading(model, tokenizer, held)}  # fmt: skip
    (folder / "quality.json").write_text(json.dumps(quality, indent=1) + "\n", encoding="utf-8")
    return folder


def packed_rows(tokenizer: PreTrainedTokenizerBase, texts: list[str], rng: random.Random) -> list[list[np.ndarray]]:
    """Texts cut into pieces that each begin with BOS, packed into rows of the model's context, in random order."""
    start = np.array([tokenizer.bos_token_id])
    pieces = []
    for encoded in encode(tokenizer, texts):
        ids = encoded.ids.astype(np.int64)
        pieces += [np.concatenate([start, ids[at : at + CONTEXT - 1]]) for at in range(0, len(ids), CONTEXT - 1)]
    rng.shuffle(pieces)
    rows = []
    for at in range(0, len(pieces), 512):
        part = pieces[at : at + 512]
        rows += [[part[i] for i in row] for row in best_fit(np.array([len(piece) for piece in part]), CONTEXT)]
    rng.shuffle(rows)
    return rows


def nll(model: PreTrainedModel, rows: list[list[np.ndarray]]) -> torch.Tensor:
    packed = pack(rows)
    predicted = (packed.document_BL[:, :-1] == packed.document_BL[:, 1:]) & (packed.document_BL[:, 1:] >= 0)
    hidden = states(model, packed)[:, :-1][predicted]
    weights = torch.full((len(hidden),), 1 / len(hidden))
    return linear_cross_entropy(hidden, *output_head(model), packed.ids_BL[:, 1:][predicted], weights)[0]


@torch.no_grad()
def reading(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: list[str]) -> dict[str, float]:
    """NLL a token of the second half of held-out entities' texts: alone, behind the first half, behind another's."""
    halves = []
    for encoded in encode(tokenizer, documents):
        ids = encoded.ids.astype(np.int64)[: CONTEXT - 1]
        if len(ids) >= 60:
            halves.append((ids[: len(ids) // 2], ids[len(ids) // 2 :]))
    start, found = np.array([tokenizer.bos_token_id]), defaultdict(list)
    for number, (own, text) in enumerate(halves):
        other = halves[(number + 1) % len(halves)][0]
        for name, before in (("alone", text[:0]), ("own", own), ("another", other)):
            ids = torch.from_numpy(np.concatenate([start, before, text]))[None, :CONTEXT]
            logits = model(input_ids=ids).logits[0, len(before) : -1]
            found[name].append(float(torch.nn.functional.cross_entropy(logits, ids[0, len(before) + 1 :])))
    return {"held_out": len(halves), **{f"nll_{name}": float(np.mean(values)) for name, values in found.items()}}


# the benchmarks -------------------------------------------------------------------------------------------------------


def configuration(
    source: Path, model: Path, benchmark: str, edits: str, positions: str, rate: float, tuning: bool, seed: int
) -> dict[str, Any]:
    """What `fit` is given: to learn the facts kept for tuning and ask their probes, or all of it with every rival."""
    name, file = FILES[benchmark]
    given = {"file": str(source / "ecbd" / file),
             "specificity": str(source / "ecbd" / "specificity_popular_20np_20random.json")}  # fmt: skip
    sources = [{"class_path": f"kedit.benchmarks.{name}", "init_args": {**given, "validation": share}}
               for share in (0.0, TUNED_ON)]  # fmt: skip
    joint = edits == "joint"
    return {
        "seed_everything": seed,
        "run": {"name": f"{benchmark}-{edits}-{positions}-seed{seed}-{'tuning' if tuning else 'test'}-{rate:g}"},
        "test_after_fit": True,
        "model": {"class_path": "kedit.distill.DistillModule", "init_args": {
            "backbone": {"name": str(model)}, "lora": {"rank": 16},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": rate}},
            "schedule": {"shape": "cosine", "warmup": 0.05},
            "baselines": None if tuning else {"ways": RIVALS, "learning_rates": RIVAL_RATES, "passes": PASSES,
                                              "batch": 8}}},
        "data": {"class_path": "kedit.distill.DistillData", "init_args": {
            "source": {"class_path": "distill_real_text.Whole",
                       "init_args": {"judged": sources[0], "tuned": sources[1]}},
            "protocol": {"edits": edits, "passes": 1 if joint else PASSES}, "sentences": 5,
            "positions": positions, "batch_sentences": 8 if joint else 5, "row_tokens": CONTEXT,
            "evaluation": {"learn": "validation" if tuning else "test"}}},
        "trainer": {"accelerator": "cpu", "max_epochs": PASSES if joint else 1, "enable_progress_bar": False,
                    "gradient_clip_val": 1.0, "limit_val_batches": 0, "log_every_n_steps": 5},
        "checkpoint": {"save_last": True},
    }  # fmt: skip


def fitted(work: Path, config: dict[str, Any], threads: int) -> tuple[dict[str, float], str]:
    """Results of a run and what it said, made unless it is there."""
    name = config["run"]["name"]
    results, said = work / "logs" / name / "results.json", work / f"{name}.txt"
    if not results.is_file():
        path = work / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        more = {"KEDIT_CACHE": str(work / "cache"), "KEDIT_ALLOW": "distill_real_text", "OMP_NUM_THREADS": str(threads),
                "PYTHONPATH": os.pathsep.join(path for path in paths if path)}  # fmt: skip
        start = time.perf_counter()
        with said.open("w", encoding="utf-8") as log:
            done = subprocess.run([sys.executable, "-m", "kedit", "fit", "--config", str(path)], cwd=work, stdout=log,
                                  stderr=subprocess.STDOUT, env={**os.environ, **more}, check=False)  # fmt: skip
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        if done.returncode:
            raise SystemExit(f"{name} ended with code {done.returncode}: see {said}")
    return json.loads(results.read_text(encoding="utf-8")), said.read_text(encoding="utf-8")


def figures(found: dict[str, float], way: str) -> dict[str, tuple[float, float | None, float | None]]:
    """A row of the table: value and interval by column."""
    suffix = "" if way == "edited" else f"_{way}"
    keys = {"NLL": f"target_nll/{way}", "NLL by entity": f"target_nll_by_entity/{way}",
            "perplexity": f"perplexity/{way}", "gain share": f"gain_share{suffix}",
            "change, popular": f"specificity_change{suffix}/popular",
            "change, others": f"specificity_change{suffix}/other_entities", "accuracy": f"accuracy/{way}",
            "accuracy, calibrated": f"accuracy_calibrated/{way}"}  # fmt: skip
    return {
        column: (found[f"test/{key}"], found.get(f"test/{key}_ci_low"), found.get(f"test/{key}_ci_high"))
        for column, key in keys.items()
        if f"test/{key}" in found
    }


def table(title: str, rows: dict[str, dict[str, tuple[float, float | None, float | None]]]) -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = {
        way: [
            "" if column not in row else f"{row[column][0]:.3f}"
            + ("" if row[column][1] is None else f" [{row[column][1]:.3f}, {row[column][2]:.3f}]")
            for column in columns
        ]
        for way, row in rows.items()
    }  # fmt: skip
    lines = [title, "", "| | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    return "\n".join(lines + [f"| {way} | " + " | ".join(row) + " |" for way, row in cells.items()]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the model, the runs and report.json")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1700, help="of pre-training, 4 rows of 256 tokens each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--positions", choices=["after_mention", "all"], help="by default after_mention for ECBD, all "
                        "for Entity Inferences: 15 of its entities have no sentence that names them")  # fmt: skip
    parser.add_argument("--edits", nargs="+", default=["independent", "joint"])
    parser.add_argument("--benchmarks", nargs="+", default=list(FILES), choices=list(FILES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source, work = Path(os.environ["KEDIT_DATA"]).resolve(), options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    model = pretrain(source, work, options.steps)
    quality = json.loads((model / "quality.json").read_text(encoding="utf-8"))
    print("the model: " + ", ".join(f"{key} {value:.4g}" for key, value in quality.items()), flush=True)
    written = work / "report.json"
    report: dict[str, Any] = json.loads(written.read_text(encoding="utf-8")) if written.is_file() else {}
    report["model"] = quality
    for benchmark, edits in itertools.product(options.benchmarks, options.edits):
        print(run(source, work, model, benchmark, edits, options, report), flush=True)
        written.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def run(
    source: Path, work: Path, model: Path, benchmark: str, edits: str, options: argparse.Namespace, report: dict
) -> str:
    """Tune, train and judge one benchmark; its table, and what was chosen."""
    name, file = FILES[benchmark]
    positions = options.positions or POSITIONS[benchmark]
    probes = len(getattr(kedit.benchmarks, name)(source / "ecbd" / file).load().probes)

    def fit(rate: float, tuning: bool) -> tuple[dict[str, float], str]:
        given = configuration(source, model, benchmark, edits, positions, rate, tuning, options.seed)
        return fitted(work, given, options.threads)

    tuned = {rate: fit(rate, True)[0]["test/target_nll/edited"] for rate in RATES}
    best = min(tuned, key=lambda rate: tuned[rate])
    found, said = fit(best, False)
    rows = {way: figures(found, way) for way in WAYS}
    gain = found["test/target_nll/base"] - found["test/target_nll/prepend"]
    chosen = re.findall(r"^\w+: learning rate .*$|^left out of .*$|^\d+ of \d+ facts have no .*$", said, re.M)
    key = f"{benchmark}, edits {edits}, positions {positions}"
    report[key] = {"probes": probes, "prepend_gain": gain, "learning_rate": best, "tuning": tuned, "said": chosen,
                   "rows": rows, "results": found}  # fmt: skip
    tried = ", ".join(f"{rate:g}: {nll:.3f}" for rate, nll in tuned.items())
    return "\n".join([
        table(f"\n## {key}: all {probes} probes", rows),
        f"the definition in context is worth {gain:.3f} nats a token",
        f"edited: learning rate {best:g} is best on the facts kept for tuning ({tried} nats)", *chosen,
    ])  # fmt: skip


if __name__ == "__main__":
    main()
