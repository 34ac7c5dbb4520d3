"""The whole ECBD-2023 evaluation beside one pass per probe and specificity sentence, in one run on one model.

Entity by entity, as the benchmark has it: 393 probes of 19 entities and 40 specificity sentences. The paper's code
asks the model before and after the edit for every probe anew, its 40 specificity sentences too: 393 * 82 passes of one
sentence, with the logits of every token. Ours asks the initial model once, and each edited model its own entity's
probes and the specificity sentences once, in batches, with logits of the spans' tokens alone. The passes of the paper's
way are timed on a sample and multiplied; they read up to the span's end, without gradients (the paper's code keeps
graphs, which is left out of its time). Both ways give the same likelihoods, which is checked. What the edits did to the
weights does not matter here: the model is random and stays what it is. On a CPU it is processor time.

    KEDIT_DATA=FOLDER python tests/speed/distill_evaluation.py [--device cuda] [--threads 1] [--model gpt2]
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.benchmarks import Ecbd
from kedit.distill.judging import EditScores, Judge
from kedit.editing.probes import Probe
from kedit.lm.backbones import Backbone, load_causal, load_tokenizer
from kedit.lm.causal import start_ids
from kedit.lm.text import encode, token_span


def architecture(name: str, width: int, layers: int) -> dict:
    if name == "gpt2":
        return {"model_type": "gpt2", "n_embd": width, "n_layer": layers, "n_head": width // 64, "n_positions": 512}
    return {"model_type": "gpt_neo", "hidden_size": width, "num_layers": layers, "num_heads": width // 64,
            "attention_types": [[["global", "local"], layers // 2]], "max_position_embeddings": 512}  # fmt: skip


def one_pass(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, probe: Probe) -> float:
    """Mean NLL of a probe's span: one sentence, its logits at every token."""
    (encoded,) = encode(tokenizer, [probe.left + probe.span + probe.right], leading_space=True)
    first, end = token_span(encoded.offsets, len(probe.left), len(probe.left) + len(probe.span))
    start = start_ids(tokenizer)
    ids = torch.tensor([[*start, *encoded.ids[:end].tolist()]], device=model.device)
    with torch.no_grad():
        log_probs = model(input_ids=ids).logits.float().log_softmax(-1)
    span = ids[0, len(start) + first :]
    return -float(log_probs[0, len(start) + first - 1 : -1].gather(1, span[:, None]).mean())


def ours(judge: Judge, model: PreTrainedModel) -> tuple[EditScores, list[EditScores]]:
    """The initial model once, and the model after each edit."""

    def asked(ids: Sequence[str], probes: Sequence[Probe]) -> EditScores:
        scores = judge.target(model, probes)
        scores.specificity = judge.specificity(model, ids)
        return scores

    knowledge = judge.knowledge
    base = asked([], knowledge.probes)
    return base, [asked([fact.id], [p for p in knowledge.probes if p.fact == fact.id]) for fact in knowledge.facts]


def timed(run: Callable[[], object], device: str) -> float:
    now = time.process_time if device == "cpu" else time.perf_counter
    start = now()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return now() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", default="gpt_neo", choices=["gpt2", "gpt_neo"])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--sample", type=int, default=40, help="passes of each kind of the paper's way that are timed")
    parser.add_argument("--batch-tokens", type=int, default=8192)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source = Path(os.environ["KEDIT_DATA"])
    tokenizer = load_tokenizer(source / "tokenizers" / "gpt2")
    torch.manual_seed(0)
    backbone = Backbone(architecture=architecture(options.model, options.width, options.layers))
    model = load_causal(backbone, tokenizer).eval().to(options.device)  # type: ignore[arg-type]
    knowledge = Ecbd(source / "ecbd" / "ecbd_2023_augmented.json",
                     source / "ecbd" / "specificity_popular_20np_20random.json").load()  # fmt: skip
    judge = Judge(tokenizer, knowledge, options.batch_tokens)
    spread = np.linspace(0, len(knowledge.probes) - 1, options.sample).astype(int)
    samples = {"probe": [knowledge.probes[index] for index in spread],
               "specificity": knowledge.specificity["popular"][: options.sample]}  # fmt: skip
    one_pass(model, tokenizer, samples["probe"][0])
    best_ours, a_pass = float("inf"), dict.fromkeys(samples, float("inf"))
    for _ in range(options.repeats):
        best_ours = min(best_ours, timed(lambda: ours(judge, model), options.device))
        for kind, probes in samples.items():
            seconds = timed(lambda probes=probes: [one_pass(model, tokenizer, p) for p in probes], options.device)  # type: ignore[misc]
            a_pass[kind] = min(a_pass[kind], seconds / len(probes))
    base, edits = ours(judge, model)
    found = base.target | base.specificity["popular"]
    apart = max(abs(one_pass(model, tokenizer, p) - found[p.id]) for probes in samples.values() for p in probes)
    assert apart < 1e-4, f"the two ways differ by {apart} nats"
    probes, popular = len(knowledge.probes), len(knowledge.specificity["popular"])
    rows = 2 * probes + popular * (1 + len(edits))
    theirs = 2 * probes * a_pass["probe"] + 2 * probes * popular * a_pass["specificity"]
    size = model.num_parameters() / 1e6
    print(
        f"\n{options.model}, {options.layers} layers, width {options.width}, {len(tokenizer)} ids, {size:.1f} M "
        f"weights, {options.device}, {options.threads} threads, least of {options.repeats}; {probes} probes of "
        f"{len(edits)} entities, {popular} specificity sentences; values differ by at most {apart:.1e} nats"
    )
    print(f"{'':34}{'passes':>9}{'ms a pass':>11}{'seconds':>10}{'ratio':>8}")
    passes = 2 * probes * (1 + popular)
    print(f"{'one pass a sentence (extrapolated)':34}{passes:9}{theirs / passes * 1e3:11.2f}{theirs:10.1f}{1:8.2f}")
    print(f"{'ours (measured)':34}{rows:9}{best_ours / rows * 1e3:11.2f}{best_ours:10.1f}{theirs / best_ours:8.2f}")
    for kind, probes_of in samples.items():
        print(f"a pass of the paper's way, {kind}: {a_pass[kind] * 1e3:.2f} ms, the mean of {len(probes_of)}")


if __name__ == "__main__":
    main()
