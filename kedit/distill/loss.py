"""The distillation loss.

    L = T^2 sum_n w_n D(p_n, q_n),   p = softmax(z_teacher / T),   q = softmax(z_student / T)

n runs over scored positions of all kinds: those of an edit (the teacher sees the definition, the student does not),
those of regularisation text and of frames with swapped names (both see the same; the teacher is the initial model).
D is KL(p || q) unless told otherwise. The paper's code: w_n = 1 / N, T = 2, edits only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kedit.editing.sources import DataError
from kedit.lm.divergences import Head, Kind, TopK, check_vocabularies, linear_divergence, linear_divergence_top_k

KINDS = ("edit", "text", "swapped")


@dataclass
class Divergence:
    """How the student's next-token distribution is compared with the teacher's.

    Args:
        kind: forward_kl is KL(teacher || student), reverse_kl is KL(student || teacher), jsd lies between them.
        temperature: softens both distributions; the loss is multiplied by its square.
        beta: the teacher's share in the mixture that jsd compares both with; of no effect elsewhere.
        top_k: keep only so many of the teacher's likeliest ids, all others in one bucket (an approximation, for
            forward_kl). By default the whole vocabulary.
    """

    kind: Kind = "forward_kl"
    temperature: float = 2.0
    beta: float = 0.5
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("forward_kl", "reverse_kl", "jsd"):
            raise ValueError(f"divergence.kind is {self.kind!r}, wanted forward_kl, reverse_kl or jsd")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"divergence.temperature is {self.temperature}, wanted a number above 0")
        if not 0 < self.beta < 1:
            raise ValueError(
                f"divergence.beta is {self.beta}, wanted a number between 0 and 1 without the ends: "
                "for these take kind forward_kl or reverse_kl"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"divergence.top_k is {self.top_k}, wanted at least 1, or null for the whole vocabulary")
        if self.top_k is not None and self.kind != "forward_kl":
            raise ValueError(
                f"divergence.top_k is {self.top_k} with kind {self.kind}: the teacher's top ids serve forward_kl only"
            )


def distill_loss(
    student_ND: Tensor, student_head: Head, teacher: tuple[Tensor, Head] | TopK, weights_N: Tensor, kinds_N: Tensor,
    divergence: Divergence,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss of scored positions.

    Args:
        student_ND: final states of the student, scaled for the head.
        student_head: its head.
        teacher: final states [N, D] of the teacher with the head they were made for (the initial model's: that of the
            student may be in training), or its top ids at the temperature of `divergence`.
        weights_N: weights float32 of the positions, already normalised.
        kinds_N: their kinds, indices into `KINDS`.
        divergence: the comparison.

    Returns:
        L; the sums of D [3] (without T^2) and the numbers of positions [3] by kind, in nats and without gradient.

    Raises:
        DataError: student and teacher have different vocabularies.
    """
    if isinstance(teacher, TopK):
        if divergence.kind != "forward_kl":
            raise ValueError(f"the teacher gave top ids, which serve forward_kl, not divergence.kind {divergence.kind}")
        loss, divergences_N = linear_divergence_top_k(
            student_ND, student_head, *teacher, weights_N, divergence.temperature
        )
    else:
        teacher_ND, teacher_head = teacher
        check_vocabularies(student_head, teacher_head, DataError)
        loss, divergences_N = linear_divergence(
            student_ND, student_head, teacher_ND, teacher_head, weights_N, divergence.kind, divergence.temperature,
            divergence.beta,
        )  # fmt: skip
    sums = torch.zeros(len(KINDS), device=divergences_N.device).index_add_(0, kinds_N, divergences_N)
    counts = torch.zeros(len(KINDS), device=divergences_N.device).index_add_(0, kinds_N, torch.ones_like(divergences_N))
    return loss, sums, counts
