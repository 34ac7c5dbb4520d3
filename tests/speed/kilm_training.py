"""Training speed and loss memory of KILM beside the paper's way of training, in one run on one machine.

The paper's way: batches of 8 documents, padded to the longest, through the stock model with full logits. Ours: the same
documents packed into rows, through the chunked cross-entropy. Same tiny BART, same examples, same optimiser.

    KEDIT_DATA=FOLDER python tests/speed/kilm_training.py [--device cuda] [--threads 1] [--tokens 60000]
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from kedit.kilm import KilmData, build_corpus
from kedit.kilm.batch import collate
from kedit.kilm.infilling import Example, Infilling
from kedit.kilm.loss import ClassWeights, kilm_loss
from kedit.lm.backbones import Backbone, load_seq2seq, output_head
from kedit.lm.losses import linear_cross_entropy
from kedit.lm.packing import decode, encode

TINY = {
    "model_type": "bart", "d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 512, "decoder_ffn_dim": 512, "max_position_embeddings": 1024,
}  # fmt: skip


def padded(model: torch.nn.Module, examples: list[Example], data: KilmData) -> torch.Tensor:
    """Loss of documents padded to the longest, as the paper's code computes it."""
    device, pad = model.device, data.marks.pad
    sequence = torch.nn.utils.rnn.pad_sequence
    source = sequence([torch.from_numpy(e.source) for e in examples], batch_first=True, padding_value=pad).to(device)
    labels = sequence([torch.from_numpy(e.target) for e in examples], batch_first=True, padding_value=-100).to(device)
    return model(input_ids=source, attention_mask=(source != pad).long(), labels=labels).loss


def packed(model: torch.nn.Module, batch, weights: ClassWeights) -> torch.Tensor:  # type: ignore[no-untyped-def]
    from lightning.fabric.utilities import move_data_to_device

    batch = move_data_to_device(batch, model.device)
    states = decode(model, encode(model, batch.rows), batch.rows)
    return kilm_loss(states, *output_head(model), batch.where_N, batch.targets_N, batch.classes_N, weights)[0]


def tokens_per_second(losses: list[Callable[[], torch.Tensor]], tokens: list[int], model: torch.nn.Module) -> float:
    """Target tokens that are not padding per second, over forward, backward and step; the first batch warms up."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for number, loss in enumerate(losses):
        if number == 1:
            start = time.perf_counter()
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return sum(tokens[1:]) / (time.perf_counter() - start)


def loss_memory(way: str, tokens: int, vocabulary: int, width: int) -> float:
    """MiB that forward and backward of the loss add to a process."""
    torch.set_num_threads(1)
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    targets = torch.randint(0, vocabulary, (tokens,))
    weight.grad, hidden.grad = torch.zeros_like(weight), torch.zeros_like(hidden)
    (hidden[:8] @ weight.T[:, :64]).sum().backward()
    before = peak_kib()
    if way == "full logits":
        torch.nn.functional.cross_entropy(hidden @ weight.T, targets).backward()
    else:
        linear_cross_entropy(hidden, weight, None, targets, torch.full((tokens,), 1 / tokens))[0].backward()
    return (peak_kib() - before) / 1024


def peak_kib() -> int:
    """Largest resident size of this process since it was executed (ru_maxrss would count its parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def in_a_process(function: Callable, *arguments: object) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=40000, help="target tokens of each measurement")
    parser.add_argument("--row-tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source = Path(os.environ["KEDIT_DATA"])
    with tempfile.TemporaryDirectory() as folder:
        build_corpus(
            dump=[source / "wikipedia" / "enwiki-shortened-2016.xml.bz2"], output=Path(folder) / "corpus",
            tokenizer=str(source / "tokenizers" / "roberta"), setting="lead",
        )  # fmt: skip
        data = KilmData(
            corpus=str(Path(folder) / "corpus"), row_tokens=options.row_tokens, batch_rows=4, infilling=Infilling()
        )
        data.setup("fit")
        model = load_seq2seq(Backbone(architecture=TINY), data.tokenizer).to(options.device)
        rows = data.batches_per_epoch * 4
        batches, examples = [], []
        for epoch in range(100):
            order = torch.randperm(len(data.train.rows), generator=torch.Generator().manual_seed(epoch)).tolist()
            for start in range(0, len(order), 4):
                drawn = [data.train.examples(row, epoch) for row in order[start : start + 4]]
                batches.append(collate(drawn, data.marks))
                examples += [example for row in drawn for example in row]
            if sum(batch.target_tokens for batch in batches) > options.tokens:
                break
        shuffled = [examples[i] for i in torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))]
        eights = [shuffled[start : start + 8] for start in range(0, len(shuffled), 8)]
        target = [sum(len(e.target) for e in eight) for eight in eights]
        fill = sum(target) / sum(len(eight) * max(len(e.target) for e in eight) for eight in eights)
        weights = ClassWeights()
        ratios = []
        for _ in range(options.repeats):
            theirs = tokens_per_second([lambda e=e: padded(model, e, data) for e in eights], target, model)
            ours = tokens_per_second(
                [lambda b=b: packed(model, b, weights) for b in batches], [b.target_tokens for b in batches], model
            )
            ratios.append((ours / theirs, theirs, ours))
    padding = sum(b.padding for b in batches) / sum(b.positions for b in batches)
    ratio, theirs, ours = sorted(ratios)[len(ratios) // 2]
    print(
        f"\n{len(examples)} lead sections in {rows} rows of {options.row_tokens}, {options.device}, "
        f"vocabulary {len(data.tokenizer)}"
    )
    print(f"{'':28}{'target tokens/s':>16}{'real target tokens':>20}")
    print(f"{'8 padded, full logits':28}{theirs:16.0f}{fill:20.1%}")
    print(f"{'packed, chunked loss':28}{ours:16.0f}{1 - padding:20.1%}  (source and target)")
    print(f"ratio {ratio:.2f} (median of {options.repeats}; {', '.join(f'{r:.2f}' for r, _, _ in sorted(ratios))})")
    memory = {
        way: median(in_a_process(loss_memory, way, 4096, 50265, 128) for _ in range(3))
        for way in ("full logits", "chunked")
    }
    print("\npeak memory of the loss, 4,096 tokens, 50,265 ids, width 128, float32:")
    for way, size in memory.items():
        print(f"{way:28}{size:12.0f} MiB")
    print(f"ratio {memory['chunked'] / memory['full logits']:.3f}")


if __name__ == "__main__":
    main()
