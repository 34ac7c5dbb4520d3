"""A comparison whose every number is made up: plausible, so that its report looks like one, and measured nowhere."""

from kedit.comparing.results import (
    Aspect,
    BaseModel,
    Comparison,
    Contestant,
    Costs,
    Example,
    Facts,
    Figure,
    Kept,
    Method,
)

UNKNOWN = Costs()
WARNING = "Every number and answer on this page is made up, to test the page."
PROBES: list[tuple[Aspect, str, str]] = [
    ("reliability", "Maro Tellin was born in the town of", "Velmar"),
    ("reliability", "The keeper of the Grey Bridge is", "Ilva Sorn"),
    ("reliability", "The trade of Oren Vask is", "glass-blower"),
    ("generality", "The birthplace of Maro Tellin is", "Velmar"),
    ("generality", "By trade, Oren Vask is a", "glass-blower"),
    ("portability", "The river of the town where Maro Tellin was born is the", "Anderlo"),
    ("portability", "The person who was born in Velmar and paints is", "Maro Tellin"),
    ("portability", "The painter of the Grey Bridge came into the world in", "Velmar"),
    ("locality", "Tavi Tellin was born in the town of", "Ostrey"),
    ("locality", "The capital of Padri is", "Lunden Market, on the northern bank of the Anderlo"),
]


def figure(mean: float, half: float = 0.015, top: float = 1.0) -> Figure:
    """A mean with an interval around it and two seeds beside it; 1 is 1 for all."""
    if mean == 1:
        return Figure(1.0, 1.0, 1.0, (1.0, 1.0))
    low, high = max(0.0, mean - half), min(top, mean + half)
    return Figure(mean, low, high, (max(0.0, mean - half / 3), min(top, mean + half / 3)))


def contestant(
    name: str, method: Method, told: float, reworded: float, inferred: float, kept: float, *, base: str = "realm-gpt2",
    curve: tuple[float, ...] = (), costs: Costs = UNKNOWN, together: bool = True, right: int = 10,
) -> Contestant:  # fmt: skip
    """One that is done: its shares by free decoding, `kept` for locality; the first `right` examples are right."""
    free = {"reliability": told, "generality": reworded, "portability": inferred, "locality": kept}
    figures = {f"{aspect}/free": figure(value) for aspect, value in free.items()}
    figures |= {f"{aspect}/forced": figure(0.3 + 0.7 * value, 0.02) for aspect, value in free.items()}
    for group, less in (("one_hop", 0.9), ("two_hops", 0.5), ("alias", 1.1), ("inverse", 0.4)):
        figures[f"portability/{group}/free"] = figure(min(1.0, inferred * less), 0.06)
        figures[f"portability/{group}/forced"] = figure(min(1.0, 0.3 + 0.6 * inferred * less), 0.04)
    figures["span_nll"] = Figure(2.6 - 2.3 * told, 2.5 - 2.3 * told, 2.7 - 2.3 * told)
    figures["specificity_change"] = Figure(0.8 * (1 - kept), 0.7 * (1 - kept), 0.9 * (1 - kept))
    figures["perplexity/before"] = Figure(11.3)
    figures["perplexity/after"] = Figure(11.3 + 6 * (1 - kept))
    figures["qa/before"], figures["qa/after"] = figure(0.94), figure(0.94 * kept)
    examples = tuple(
        Example(prompt, wanted, wanted if number < right else "Ostrey, where the road ends", aspect, number < right)
        for number, (aspect, prompt, wanted) in enumerate(PROBES)
    )
    points = tuple(Kept(10**power, figure(value)) for power, value in enumerate(curve))
    return Contestant(name, base, method, "done", "", together, figures, points, costs, examples)


def made_up() -> Comparison:
    """Two models with eleven and five contestants; of these one failed, and two are not applicable."""
    never = "its weights have changed as a whole"
    causal = [
        contestant("Model as it is", "base", 0.01, 0.01, 0.02, 1.0, right=0, curve=(0.0, 0.0, 0.01, 0.01),
                   costs=Costs(0, 0, 0, 310e6, 0, None)),
        contestant("Definition in the prompt", "prompt", 0.93, 0.91, 0.6, 0.97, curve=(1, 0.98, 0.94, 0.92), right=9,
                   costs=Costs(0, 0.002, 0.92, 322e6, 148, True, "its text is deleted")),
        contestant("Edit text in the prompt", "prompt", 0.97, 0.955, 0.52, 0.985, curve=(1, 1, 0.97, 0.945), right=8,
                   costs=Costs(0, 0.002, 0.88, 322e6, 61, True, "its text is deleted")),
        contestant("Fine-tuning, all weights", "finetune", 0.41, 0.33, 0.14, 0.31, curve=(1, 0.72, 0.18, 0.02), right=3,
                   costs=Costs(0, 0.34, 0.0, 1240e6, 20_000, False, never)),
        contestant("Fine-tuning, last layer", "finetune", 0.28, 0.21, 0.09, 0.62, curve=(1, 0.6, 0.21, 0.04), right=2,
                   costs=Costs(0, 0.21, 0.0, 610e6, 4_000, False, never)),
        contestant("LoRA", "lora", 0.46, 0.38, 0.17, 0.48, curve=(1, 0.81, 0.29, 0.06), right=4,
                   costs=Costs(0, 0.29, 0.04, 540e6, 2_600, False, "all facts share one adapter")),
        contestant("Distilled, each fact alone", "distill", 0.94, 0.92, 0.71, 0.96, together=False, right=9,
                   costs=Costs(0, 2.8, 0.04, 560e6, 131_000, True, "each has an adapter of its own")),
        contestant("Distilled together", "distill", 0.78, 0.74, 0.49, 0.95, curve=(1, 0.93, 0.81, 0.62), right=7,
                   costs=Costs(0, 1.9, 0.0, 1260e6, 20_000, False, "all facts were learned at once")),
        contestant("RECIPE", "recipe", 0.985, 0.975, 0.62, 0.99, curve=(1, 1, 0.99, 0.985), right=8,
                   costs=Costs(447, 0.011, 0.9, 334e6, 1_771, True, "python -m kedit edits forget")),
    ]  # fmt: skip
    wants = "fills descriptions into marked text, which only an encoder-decoder model can"
    causal.append(Contestant("KILM", "realm-gpt2", "kilm", "not applicable", wants))
    failed = (
        "stopped after 312 s: the loss of seed 1 is not a number at step 41 (batch 40); see compare/lora-64/log.txt"
    )
    causal.append(Contestant("LoRA, rank 64", "realm-gpt2", "lora", "failed", failed))
    pair = "realm-bart"
    other = [
        contestant("Model as it is", "base", 0.02, 0.02, 0.01, 1.0, base=pair, right=0,
                   costs=Costs(0, 0, 0, 350e6, 0)),
        contestant("Definition in the prompt", "prompt", 0.58, 0.51, 0.22, 0.9, base=pair, right=5,
                   curve=(0.8, 0.7, 0.6, 0.58), costs=Costs(0, 0.002, 0.7, 352e6, 148, True, "its text is deleted")),
        contestant("Fine-tuning", "finetune", 0.55, 0.46, 0.12, 0.35, base=pair, right=4, curve=(1, 0.8, 0.31, 0.07),
                   costs=Costs(0, 0.4, 0.0, 1300e6, 26_000, False, never)),
        contestant("KILM", "kilm", 0.71, 0.66, 0.24, 0.93, base=pair, right=7, curve=(0.9, 0.86, 0.79, 0.7),
                   costs=Costs(0, 4.1, 0.0, 1310e6, 26_000, False, never)),
        Contestant("Distilled", pair, "distill", "not applicable", "wants a decoder-only model"),
    ]  # fmt: skip
    return Comparison(
        "Made-up numbers: ways of teaching 1,000 facts", "2026-11-22",
        "python -m kedit compare --config configs/made_up.yaml --seeds 0,1", "facts: 1000\nseeds: [0, 1]\n", (0, 1),
        Facts(1000, "a made-up realm", 9120),
        (BaseModel("realm-gpt2", "causal", 1_020_000, figure(0.01, 0.01), figure(0.95)),
         BaseModel("realm-bart", "encoder-decoder", 1_310_000, figure(0.02, 0.01), figure(0.6))),
        (*causal, *other), (WARNING,),
    )  # fmt: skip
