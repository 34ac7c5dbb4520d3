"""The gate over the number of stored edits: what fires where no edit is meant, and what is found where one is.

    python tests/speed/recipe_gate.py --run quickstart-recipe --figure gate.svg
    python tests/speed/recipe_gate.py --run quickstart-recipe --calibration NQ-open.efficientqa.dev.1.1.jsonl \
        --questions NQ-open.dev.jsonl --sentences wikitext2/test.txt --counterfact counterfact-edit.json

Stored are edits of the made-up registry's test, behind those of --counterfact where it is given. The margin is set anew
at every count, by texts that are not judged: the run's own (`own`), and files of questions. Prints tables in Markdown.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kedit.benchmarks import CounterFact, NaturalQuestions, Sentences
from kedit.editing.edits import Edit
from kedit.recipe.data import questions
from kedit.recipe.encoding import calibration_vectors, encode_keys, encode_queries
from kedit.recipe.gate import Gate
from kedit.recipe.nearest import nearest
from kedit.recipe.networks import MemoryNetworks
from kedit.recipe.search import Index
from kedit.recipe.tables import prompt_hash
from kedit.recipe.texts import TextEncoder
from kedit.recipe.trained import encoder_hash, find_trained, load_networks
from kedit.world import RegistryEdits, RegistryQuestions

OWN = "own"
AT_ONCE = 8192
"""Edits that are encoded at once."""


@dataclass
class Asked:
    """Queries of a kind, encoded.

    Args:
        queries_QD: the queries.
        thresholds_Q: the sentinel's similarities.
        own_Q: number of the edit that each means, from 1; 0 where none.
    """

    queries_QD: Tensor
    thresholds_Q: Tensor
    own_Q: Tensor


@dataclass
class Row:
    """What came of the queries of a kind at one count.

    Args:
        queries: how many.
        alone: share that is taken to mean what it should not, or for queries of edits what it should, by the sentinel
            alone.
        gated: the same with the margin.
        nearest: share whose own key is the most similar; nan where there is none.
    """

    queries: int
    alone: float
    gated: float
    nearest: float


def stored(options: argparse.Namespace) -> list[Edit]:
    """The stream, with no prompt twice: the repository would keep the newest."""
    edits = [] if options.counterfact is None else CounterFact(options.counterfact).load()
    most = max(options.counts)
    if len(edits) < most:
        edits += RegistryEdits("test", most - len(edits), known=options.known, registry=options.registry).load()
    found: dict[bytes, Edit] = {}
    for edit in edits:
        found.setdefault(prompt_hash(edit.prompt), edit)
    if left := len(edits) - len(found):
        print(f"left out: {left:,} edits whose prompt came before")
    return list(found.values())


def far(options: argparse.Namespace) -> dict[str, list[str]]:
    """Texts that no edit concerns, by where they come from."""
    made = RegistryQuestions("test", options.judged, known=options.known, registry=options.registry)
    found = {"registry": questions([made])}
    if options.questions is not None:
        found["questions"] = questions([NaturalQuestions(options.questions)])
    if options.sentences is not None:
        found["sentences"] = questions([Sentences(options.sentences, options.judged, seed=0)])
    return found


def gate_of(options: argparse.Namespace, networks: MemoryNetworks, texts: TextEncoder) -> Gate:
    parts = []
    if OWN in options.calibration:
        memory = find_trained(options.run).memory
        parts.append(calibration_vectors(memory, networks, texts, encoder_hash(networks.state_dict())))
    for file in options.calibration:
        if file != OWN:
            parts.append(encode_queries(networks, texts, questions([NaturalQuestions(file)])))
    queries_CD, thresholds_C = (torch.cat(one) for one in zip(*parts, strict=True))
    print(f"{len(thresholds_C):,} texts for calibration: {' '.join(options.calibration)}; wanted {options.rate:.1%}")
    return Gate(queries_CD, thresholds_C, options.rate, networks)


def of_edits(networks: MemoryNetworks, texts: TextEncoder, edits: Sequence[Edit], judged: int) -> dict[str, Asked]:
    """Probes of some of the edits by their group; those of locality that are themselves edited are left out."""
    numbers = sorted(random.Random(0).sample(range(len(edits)), min(judged, len(edits))))
    edited = {prompt_hash(edit.prompt) for edit in edits}
    groups: dict[str, list[tuple[str, int]]] = {}
    for number in numbers:
        for probe in edits[number].all_probes:
            aspect = probe.group.split("/")[0]
            if aspect in ("reliability", "generality"):
                groups.setdefault(probe.group, []).append((probe.prompt, number + 1))
            elif aspect == "locality" and prompt_hash(probe.prompt) not in edited:
                groups.setdefault(probe.group, []).append((probe.prompt, 0))
    return {
        group: Asked(*encode_queries(networks, texts, [prompt for prompt, _ in asked]),
                     torch.tensor([own for _, own in asked]))
        for group, asked in sorted(groups.items())
    }  # fmt: skip


def judge(asked: Asked, index: Index, gate: Gate, networks: MemoryNetworks) -> Row:
    # without a floor where it is also told how often the own key is the nearest of all
    floor_Q = asked.thresholds_Q.masked_fill(asked.own_Q.to(asked.thresholds_Q.device) > 0, -torch.inf)
    found = nearest(index, networks, asked.queries_QD, floor_Q)
    similarity_Q, number_Q = found.similarity_B.cpu(), found.number_B.cpu()
    threshold_Q = asked.thresholds_Q.cpu()
    above_Q, fired_Q = similarity_Q > threshold_Q, gate.fires(similarity_Q, threshold_Q)
    own_nearest = float("nan")
    if bool(asked.own_Q.any()):
        is_own_Q = number_Q == asked.own_Q
        own_nearest = float(is_own_Q.float().mean())
        above_Q, fired_Q = above_Q & is_own_Q, fired_Q & is_own_Q
    return Row(len(similarity_Q), float(above_Q.float().mean()), float(fired_Q.float().mean()), own_nearest)


def measure(options: argparse.Namespace) -> dict[int, tuple[float, dict[str, Row]]]:
    """By count the margin, and what came of each kind of queries."""
    networks, texts, _ = load_networks(options.run, options.device)
    gate, edits = gate_of(options, networks, texts), stored(options)
    nothing = {
        name: Asked(*encode_queries(networks, texts, given), torch.zeros(len(given), dtype=torch.int64))
        for name, given in far(options).items()
    }
    index = Index(networks.key_width, options.device)
    found = {}
    done = 0
    for count in sorted({min(count, len(edits)) for count in options.counts}):
        for start in range(done, count, AT_ONCE):
            end = min(start + AT_ONCE, count)
            keys_ND = encode_keys(networks, texts, edits[start:end])
            index.add(torch.arange(start + 1, end + 1).numpy(), keys_ND.cpu().numpy())
            gate.observe(keys_ND)
        done = count
        asked = nothing | of_edits(networks, texts, edits[:count], options.judged)
        found[count] = (gate.margin, {name: judge(one, index, gate, networks) for name, one in asked.items()})
        print(f"{count:,} edits: margin {gate.margin:.3f}", flush=True)
    return found


def is_recall(name: str) -> bool:
    return name.startswith(("reliability", "generality"))


def tables(found: dict[int, tuple[float, dict[str, Row]]]) -> None:
    for recall in (False, True):
        names = [name for name in next(reversed(found.values()))[1] if is_recall(name) == recall]
        print("\nown edit fires (its key is the nearest), %:" if recall else "\nfires although no edit is meant, %:")
        print(f"sentinel alone -> with the margin\n\n| edits | margin | {' | '.join(names)} |")
        print("|---|---|" + "---|" * len(names))
        for count, (margin, rows) in found.items():
            cells = [cell(rows[name]) if name in rows else "" for name in names]
            print(f"| {count:,} | {margin:.3f} | {' | '.join(cells)} |")


def cell(row: Row) -> str:
    nearest = "" if row.nearest != row.nearest else f" ({100 * row.nearest:.1f})"
    return f"{100 * row.alone:.2f} -> {100 * row.gated:.2f}{nearest}, n = {row.queries:,}"


def draw(found: dict[int, tuple[float, dict[str, Row]]], rate: float, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    counts = list(found)
    titles = ("fires although no edit is meant", "the edit that is meant fires")
    for axes, recall, title in zip(panels, (False, True), titles, strict=True):
        names = [name for name in next(reversed(found.values()))[1] if is_recall(name) == recall]
        for number, name in enumerate(names):
            points = [(count, rows[name]) for count, (_, rows) in found.items() if name in rows]
            at = [count for count, _ in points]
            axes.plot(at, [100 * row.gated for _, row in points], "o-", markersize=4, color=f"C{number}", label=name)
            axes.plot(at, [100 * row.alone for _, row in points], ":", color=f"C{number}")
        axes.set_xscale("log")
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("edits stored (dotted: sentinel alone)")
        axes.set_ylabel("%")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    panels[0].axhline(100 * rate, color="grey", linewidth=0.8, linestyle="--")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="name of a run, its folder, or an exported one")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100, 1000, 10_000, 100_000])
    parser.add_argument("--rate", type=float, default=0.01, help="wanted share of false activations")
    parser.add_argument(
        "--calibration", nargs="+", default=[OWN], help=f"files as NQ-open's, or {OWN}: the run's texts"
    )
    parser.add_argument("--questions", help="NQ-open's dev file, judged beside the registry's questions")
    parser.add_argument("--sentences", help="plain text whose sentences are judged, as wikitext-2's test")
    parser.add_argument("--counterfact", help="CounterFact's edits, stored first")
    parser.add_argument("--judged", type=int, default=2000, help="edits, questions and sentences judged at a count")
    parser.add_argument("--known", type=int, default=150, help="as the run's RegistryEdits has it")
    parser.add_argument("--registry", type=int, default=0, help="likewise")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--figure", type=Path, help="SVG or PNG to write")
    options = parser.parse_args()
    found = measure(options)
    tables(found)
    if options.figure is not None:
        draw(found, options.rate, options.figure)


if __name__ == "__main__":
    main()
