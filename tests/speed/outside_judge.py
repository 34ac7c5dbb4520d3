"""An outside judge: lm-evaluation-harness on the models that contestants of a comparison left, beside our own figures.

A contestant is taught the facts of a comparison's configuration, its model is written as a Hugging Face folder, and the
harness asks the same probes by a local task: what it writes up to the end of the sentence (free), and whether the whole
target is what greedy decoding would write (greedy). Only contestants whose knowledge is in the weights can be judged.

    python tests/speed/outside_judge.py CONFIG WORK_FOLDER --base NAME --contestants NAME [NAME ...] [--limit 100]

Needs lm-eval (`pip install -e '.[judge]'`).
"""

import argparse
import functools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import kedit.benchmarks
import kedit.contestants
import kedit.world  # noqa: F401  short class names resolve
from kedit.comparing.command import compare
from kedit.comparing.facts import Defining, FactSet
from kedit.editing.judging import Judge, is_local
from kedit.editing.probes import Probe
from kedit.running.functions import call

STOP = ["\n", ". ", ".</s>", "</s>"]


def configured(config: str) -> dict[str, Any]:
    """What a comparison's configuration names."""

    @functools.wraps(compare)
    def given(**options: Any) -> dict[str, Any]:
        return options

    return call(given, "compare", ["--config", config])


def whole_model(model: torch.nn.Module) -> Any:
    """The model with its adapters merged into its weights."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        for module in list(model.modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge()
        for name, module in list(model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, module.get_base_layer())
    return model.get_base_model() if isinstance(model, PeftModel) else model


def write_task(folder: Path, name: str, probes: list[Probe], kind: str) -> None:
    """A task of the harness over these probes: `free` writes, `greedy` asks for the target's likelihood."""
    rows = [{"prompt": probe.prompt, "target": probe.span} for probe in probes]
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{target}}",
        "target_delimiter": " ",
    }
    if kind == "free":
        task |= {
            "output_type": "generate_until",
            "generation_kwargs": {"until": STOP, "max_gen_toks": 32, "do_sample": False},
            "filter_list": [{"name": "cut", "filter": [{"function": "regex", "regex_pattern": r"^\s*([^.\n]*)"},
                                                      {"function": "take_first"}]}],
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True,
                             "ignore_case": True, "ignore_punctuation": True}],
        }  # fmt: skip
    else:
        task |= {
            "output_type": "loglikelihood",
            "doc_to_target": " {{target}}",  # here the harness joins without its delimiter
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")


def harness(model: Path, tasks: Path, names: list[str], bos: bool) -> dict[str, float]:
    """What the harness says of the model, by task."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    arguments = f"pretrained={model},add_bos_token={bos},dtype=float32"
    found = simple_evaluate("hf", model_args=arguments, tasks=names, batch_size=16, device="cpu",
                            task_manager=TaskManager(include_path=str(tasks), include_defaults=False))  # fmt: skip
    results = {}
    for name in names:
        values = found["results"][name]
        results[name] = next(value for key, value in values.items() if key.startswith(("exact_match,", "acc,")))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("work", type=Path)
    parser.add_argument("--base", required=True)
    parser.add_argument("--contestants", nargs="+", required=True)
    parser.add_argument("--limit", type=int, default=100, help="facts that are taught")
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    options = configured(given.config)
    source, base = options["facts"], options["bases"][given.base]
    edits = source.load()[: given.limit]
    facts = FactSet(edits, source if isinstance(source, Defining) else None)
    probes = [probe for edit in edits for probe in edit.all_probes if not is_local(probe) and not probe.answers]
    groups = {aspect: [probe for probe in probes if probe.group.split("/")[0] == aspect]
              for aspect in ("reliability", "generality", "portability")}  # fmt: skip
    groups = {aspect: members for aspect, members in groups.items() if members}
    print(f"| contestant | probes | free: ours | harness | greedy: ours | harness |\n|{'---|' * 6}")
    for name in given.contestants:
        with tempfile.TemporaryDirectory() as folder:
            opened = options["contestants"][name].open(base, facts, 0, Path(folder))
            opened.editor.edit(edits)
            ours = {}
            for aspect, members in groups.items():
                verdicts = Judge(32, "sentence")(opened.editor, members)
                matches = opened.editor.greedy_tokens([one.prompt for one in members], [one.span for one in members])
                greedy = np.mean([bool((one.likeliest == one.target).all()) for one in matches])
                ours[aspect] = float(verdicts.free_N.mean()), float(greedy)
            model = given.work / name.replace(" ", "-")
            prefixed = opened.editor.model
            whole_model(prefixed.model).save_pretrained(model)
            prefixed.tokenizer.save_pretrained(model)
        tasks = given.work / "tasks"
        tasks.mkdir(parents=True, exist_ok=True)
        names = {(aspect, kind): f"{aspect}_{kind}" for aspect in groups for kind in ("free", "greedy")}
        for (aspect, kind), task in names.items():
            write_task(tasks, task, groups[aspect], kind)
        said = harness(model, tasks, list(names.values()), base.bos)
        for aspect, members in groups.items():
            free, greedy = (said[names[aspect, kind]] for kind in ("free", "greedy"))
            print(f"| {name} | {len(members)} {aspect} | {ours[aspect][0]:.3f} | {free:.3f} | {ours[aspect][1]:.3f} "
                  f"| {greedy:.3f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
