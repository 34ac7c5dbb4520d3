"""The quickstart of distillation over the number of entities learned at once: a table, and a figure of it.

    python tests/speed/distill_curve.py --counts 1 10 50 150 500 --figure kedit/distill/entities.svg

Each count is a run of its own, `python -m kedit fit` with as many of the new entities; runs of few entities go through
their sentences more often, so that all have at least --steps steps.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "quickstart_distill.yaml"
SENTENCES, READ_WITH_EACH, BATCH = 30, 2, 96  # about, under the configuration
KEYS = {
    "test/gain_share": "share of the gain",
    "test/specificity_change_share/unrelated": "unrelated",
    "test/specificity_change_share/neighbours": "neighbours",
}


def run(count: int, seed: int, epochs: int, folder: Path) -> dict[str, float]:
    name = f"curve-{count}-{seed}"
    results = folder / "logs" / name / "results.json"
    if not results.is_file():
        command = [sys.executable, "-m", "kedit", "fit", "--config", str(CONFIG), "--run.name", name,
                   "--run.numbered", "false", "--seed_everything", str(seed), "--trainer.max_epochs", str(epochs),
                   "--trainer.check_val_every_n_epoch", str(epochs), "--data.init_args.source.init_args.new", "500",
                   "--data.init_args.most_facts", str(count), "--model.init_args.baselines", "null"]  # fmt: skip
        subprocess.run(command, cwd=folder, check=True)
    return json.loads(results.read_text())


def draw(rows: list[tuple[int, dict[str, float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    counts = [count for count, _ in rows]
    for key, label in KEYS.items():
        values = [100 * found[key] for _, found in rows]
        ends = [[100 * found.get(f"{key}_ci_{end}", found[key]) for _, found in rows] for end in ("low", "high")]
        errors = [[v - low for v, low in zip(values, ends[0], strict=True)],
                  [high - v for v, high in zip(values, ends[1], strict=True)]]  # fmt: skip
        axes.errorbar(counts, values, yerr=errors, marker="o", markersize=4, capsize=3, label=label)
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xlabel("entities learned at once")
    axes.set_ylabel("% of the gain of definitions in context")
    axes.legend(loc="center right")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10, 50, 150, 500])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=150, help="fewest steps of a run")
    parser.add_argument("--epochs", type=int, default=14, help="passes where these are enough steps")
    parser.add_argument("--folder", type=Path, default=Path(), help="where runs write; finished ones are not repeated")
    parser.add_argument("--figure", type=Path, help="SVG to write")
    options = parser.parse_args()
    rows = []
    for count in options.counts:
        a_pass = math.ceil(count * SENTENCES * (1 + READ_WITH_EACH) / BATCH)
        rows.append((count, run(count, options.seed, max(options.epochs, math.ceil(options.steps / a_pass)),
                                options.folder)))  # fmt: skip
    print("\n| entities | NLL base / in context / edited | " + " | ".join(KEYS.values()) + " |\n|---|---|---|---|---|")
    for count, found in rows:
        nll = " / ".join(f"{found[f'test/target_nll/{way}']:.2f}" for way in ("base", "prepend", "edited"))
        cells = []
        for key in KEYS:
            low, high = (found.get(f"{key}_ci_{end}", math.nan) for end in ("low", "high"))
            cells.append(f"{100 * found[key]:.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
        print(f"| {count} | {nll} | {' | '.join(cells)} |")
    if options.figure is not None:
        draw(rows, options.figure)


if __name__ == "__main__":
    main()
