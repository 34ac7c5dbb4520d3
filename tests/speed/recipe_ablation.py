"""What each part of RECIPE's networks gives on the made-up registry: the quickstart with one part changed at a time.

    python tests/speed/recipe_ablation.py WORK_FOLDER [--steps 800] [--edits 1000] [--only ...]

Prints a table in Markdown; a variant that has its results in the work folder is not run again.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "quickstart_recipe.yaml"
RANDOM_TRUNK = {
    "made": None,
    "architecture": {"model_type": "roberta", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                     "intermediate_size": 384, "max_position_embeddings": 130, "type_vocab_size": 1},
}  # fmt: skip
MODEL, DATA = "--model.init_args.", "--data.init_args."
VARIANTS: dict[str, list[str]] = {
    "as it is": [],
    "similarity is the slots' mean": [f"{MODEL}strictness", "0"],
    "one slot, as a pooled key": [f"{MODEL}slots", "1", f"{MODEL}slot_width", "256"],
    "no further negatives": [f"{DATA}negatives", "0"],
    "an encoder that has read nothing": [f"{MODEL}trunk", json.dumps(RANDOM_TRUNK), f"{MODEL}trunk_share", "1"],
    "prompt vectors that copy nothing": [],
    "the paper's networks and losses": [f"{MODEL}reference", "true", f"{MODEL}key_width", "1024"],
}
NO_COPY = "prompt vectors that copy nothing"
COLUMNS = {
    "reliability": "test/reliability/free",
    "generality": "test/generality/free",
    "... new wordings": "test/generality/new/free",
    "new objects": "test/reliability/new_object/free",
    "locality": "test/locality/free",
    "... near": "test/locality/near/free",
    "fired at far questions": "test/false_activation_rate",
}


def without_copy() -> None:
    """Prompt vectors of the encoder's states alone."""
    from kedit.recipe.networks import SlotNetworks

    def prompts(self, texts, embed):  # type: ignore[no-untyped-def]
        states_NLH, _ = self._read(texts)
        places = texts.place_NM[:, :, None].expand(-1, -1, states_NLH.shape[-1])
        states_NMH = states_NLH.gather(1, places)
        embedded_NME = embed(texts.model_ids_NM).to(states_NMH.dtype)
        scaled_NME = torch.nn.functional.layer_norm(embedded_NME, embedded_NME.shape[-1:])
        read = torch.cat([self.prompt_state(states_NMH), scaled_NME], -1)
        return self.prompt_context(self.prompt_attention(read, texts.model_real_NM) @ states_NMH)

    SlotNetworks.prompts = prompts  # type: ignore[method-assign]


def train(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Train and test one variant in this process, in its folder."""
    from kedit.cli import main as kedit

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if name == NO_COPY:
        without_copy()
    os.chdir(folder)
    code = kedit([
        "fit", "--config", str(CONFIG), "--run.name", "run", "--run.numbered", "false", "--trainer.max_steps",
        str(options.steps), f"{DATA}evaluation.edits", str(options.edits), f"{DATA}evaluation.rivals", "[]",
        *VARIANTS[name],
    ])  # fmt: skip
    if code:
        raise SystemExit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the runs")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--here", action="store_true", help="train the one variant in this process")
    options = parser.parse_args()
    print(f"| {options.steps:,} steps, {options.edits:,} edits | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for name in options.only:
        folder = options.work.resolve() / f"{list(VARIANTS).index(name)}-{options.steps}-{options.edits}"
        folder.mkdir(parents=True, exist_ok=True)
        results = folder / "logs" / "run" / "results.json"
        if options.here:
            train(name, folder, options)
            return
        if not results.is_file():
            with (folder / "said.txt").open("w") as log:
                subprocess.run([sys.executable, __file__, str(options.work), "--here", "--only", name, "--steps",
                                str(options.steps), "--edits", str(options.edits)], stdout=log, stderr=log,
                               check=True)  # fmt: skip
        found = json.loads(results.read_text(encoding="utf-8"))
        print(f"| {name} | {' | '.join(f'{found[key]:.3f}' for key in COLUMNS.values())} |", flush=True)


if __name__ == "__main__":
    main()
