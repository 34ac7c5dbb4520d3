"""Memory and time of the distillation loss beside the plain way: forward and backward with the student head's gradient.

The plain way is what the paper's code computes: both logits in full, T^2 KL(softmax || log_softmax) by autograd. Memory
is measured in a process of its own, beyond what states, heads and the gradients handed to the optimiser take.

    python tests/speed/distill_loss.py [--device cuda] [--threads 1] [--repeats 3]
"""

import argparse
import multiprocessing
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, softmax

from kedit.lm.divergences import Head, linear_divergence, linear_divergence_top_k, top_k

TEMPERATURE = 2.0


def measured(way: str, positions: int, vocabulary: int, width: int, device: str, threads: int) -> tuple[float, ...]:
    """MiB added, seconds, loss and the norm of the head's gradient, in a fresh process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    student, teacher = (torch.randn(positions, width, device=device) for _ in range(2))
    weight = torch.randn(vocabulary, width, device=device).div_(width**0.5).requires_grad_()
    student.requires_grad_()
    teacher_weight = weight.detach() + 0.01
    kept = top_k(teacher, Head(teacher_weight), 100, TEMPERATURE, 8) if way == "chunked, top 100" else None
    weight.grad, student.grad = torch.zeros_like(weight), torch.zeros_like(student)
    (student[:8] @ weight.T[:, :64]).sum().backward()
    weight.grad.zero_()
    weights = torch.full((positions,), 1 / positions, device=device)

    def loss() -> Tensor:
        if way == "full logits":
            with torch.no_grad():
                p = softmax(teacher @ teacher_weight.T / TEMPERATURE, 1)
            log_q = log_softmax(student @ weight.T / TEMPERATURE, 1)
            return TEMPERATURE**2 * kl_div(log_q, p, reduction="batchmean")
        if kept is not None:
            return linear_divergence_top_k(student, Head(weight), *kept, weights, TEMPERATURE)[0]
        return linear_divergence(
            student, Head(weight), teacher, Head(teacher_weight), weights, kinds[way], TEMPERATURE
        )[0]

    kinds = {"chunked": "forward_kl", "chunked, reverse": "reverse_kl", "chunked, jsd": "jsd"}
    before = held_mib(device)
    start = time.perf_counter()
    value = loss()
    value.backward()
    if device == "cuda":
        torch.cuda.synchronize()
    return held_mib(device, peak=True) - before, time.perf_counter() - start, value.item(), weight.grad.norm().item()


def held_mib(device: str, peak: bool = False) -> float:
    """Memory of this process (ru_maxrss would count its parent's) or of the device, now or at its largest."""
    if device == "cuda":
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    return int(Path("/proc/self/status").read_text().split("VmHWM:" if peak else "VmRSS:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--width", type=int, default=768)
    options = parser.parse_args()
    shape = (options.positions, options.vocabulary, options.width, options.device, options.threads)
    print(f"{options.positions} positions, {options.vocabulary} ids, width {options.width}, float32, {options.device}")
    print(f"{'':20}{'extra peak MiB':>16}{'of full':>9}{'seconds':>10}{'loss':>14}{'|head gradient|':>18}")
    full = 0.0
    for way in ("full logits", "chunked", "chunked, reverse", "chunked, jsd", "chunked, top 100"):
        rows = []
        for _ in range(options.repeats):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(measured, (way, *shape)))
        memory, seconds, loss, norm = (median(column) for column in zip(*rows, strict=True))
        full = full or memory
        print(f"{way:20}{memory:16.0f}{memory / full:9.3f}{seconds:10.2f}{loss:14.7f}{norm:18.7e}", flush=True)


if __name__ == "__main__":
    main()
