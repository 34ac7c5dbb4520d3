"""What is minimised: the terms of a step, by name, each a mean in nats, weighed and added.

The default networks learn to find keys by `loss.finding_loss`, the paper's by its own terms. Knows no Lightning.

Shapes: Q queries, K keys, n target tokens of all rows of the language model, H width of its final states.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from kedit.lm.divergences import Head, linear_divergence
from kedit.lm.losses import linear_cross_entropy
from kedit.recipe.batch import Kind, RecipeBatch
from kedit.recipe.loss import finding_loss
from kedit.recipe.networks import MemoryNetworks, SlotNetworks
from kedit.recipe.prefix import PrefixedModel


@dataclass
class Weights:
    """How much each term of the loss counts.

    Args:
        finding: own key against other keys, and the sentinel against both.
        reliability: the target behind the edit's prompt.
        generality: the target behind another wording.
        locality: what the model says elsewhere, with the edit's prompt vectors before it, against what it says without.
    """

    finding: float = 1.0
    reliability: float = 1.0
    generality: float = 1.0
    locality: float = 0.0

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 0 or not any(vars(self).values()):
            raise ValueError(f"weights are {self}, wanted none negative and at least one positive")


@dataclass
class Found:
    """What a step found.

    Args:
        similarity_QK: of every query to every key, without gradient.
        threshold_Q: the sentinel's.
        keys_BD: keys of the step's own edits.
    """

    similarity_QK: Tensor
    threshold_Q: Tensor
    keys_BD: Tensor


class Objective(ABC):
    """The terms of a step.

    Args:
        weights: of the terms.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    @abstractmethod
    def finding(self, networks: MemoryNetworks, batch: RecipeBatch) -> tuple[dict[str, Tensor], Found]:
        """Terms of finding the right key."""

    def vectors(self, networks: MemoryNetworks, model: PrefixedModel, batch: RecipeBatch, found: Found) -> Tensor:
        """Prompt vectors [B, T, E] of the step's edits."""
        return networks.prompts(batch.edits, model.token_embeddings)

    @abstractmethod
    def told(self, states_nH: Tensor, head: Head, targets_n: Tensor) -> Tensor:
        """The loss of target tokens: a mean."""

    def __call__(
        self, networks: MemoryNetworks, model: PrefixedModel, batch: RecipeBatch, base_nH: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor], Found]:
        """The loss, its terms without gradient, and the similarities.

        Args:
            networks: which learn.
            model: frozen.
            batch: the step's texts.
            base_nH: final states of the language model alone at the target tokens of locality rows.
        """
        terms, found = self.finding(networks, batch)
        total = self.weights.finding * sum(terms.values(), torch.zeros((), device=found.threshold_Q.device))
        if not (self.weights.reliability or self.weights.generality or self.weights.locality):
            return total, {name: term.detach() for name, term in terms.items()}, found
        prompts_BTE = self.vectors(networks, model, batch, found)
        states_nH = model.target_states(batch.rows, prompts_BTE[batch.edit_R])
        kind_n = batch.kind_R[batch.rows.row_n]
        head = Head(*model.head())
        for kind, name in ((Kind.RELIABILITY, "reliability"), (Kind.GENERALITY, "generality")):
            chosen = (kind_n == kind).nonzero()[:, 0]
            if len(chosen):
                terms[name] = self.told(states_nH[chosen], head, batch.rows.target_n[chosen])
                total = total + getattr(self.weights, name) * terms[name]
        if base_nH is not None and len(base_nH):
            chosen = (kind_n == Kind.LOCALITY).nonzero()[:, 0]
            share_n = torch.full((len(chosen),), 1 / len(chosen), device=states_nH.device)
            terms["locality"] = linear_divergence(states_nH[chosen], head, base_nH, head, share_n)[0]
            total = total + self.weights.locality * terms["locality"]
        return total, {name: term.detach() for name, term in terms.items()}, found


class SlotObjective(Objective):
    """Terms of `loss.finding_loss`, with fresh negatives, and plain cross-entropy.

    Args:
        weights: of the terms.
        margin: by which own key, sentinel and other keys are to be apart, in units of similarity.
    """

    def __init__(self, weights: Weights, margin: float = 0.1) -> None:
        super().__init__(weights)
        self.margin = margin

    def finding(self, networks: MemoryNetworks, batch: RecipeBatch) -> tuple[dict[str, Tensor], Found]:
        assert isinstance(networks, SlotNetworks)
        queries_QD = networks.queries(batch.queries)
        with torch.no_grad():
            negatives_FD = networks.keys(batch.negatives) if len(batch.negatives) else queries_QD[:0]
        keys_BD = networks.keys(batch.keys)
        keys_KD = torch.cat([keys_BD, negatives_FD])
        similarity_QK, threshold_Q = networks.similarities(queries_QD, keys_KD), networks.threshold(queries_QD)
        loss = finding_loss(
            similarity_QK, threshold_Q, batch.own_Q, batch.ignore_QK, networks.scale, self.margin
        )  # fmt: skip
        return {f"finding/{name}": term for name, term in loss._asdict().items()}, Found(
            similarity_QK.detach(), threshold_Q.detach(), keys_BD
        )

    def told(self, states_nH: Tensor, head: Head, targets_n: Tensor) -> Tensor:
        share_n = torch.full((len(targets_n),), 1 / len(targets_n), device=states_nH.device)
        return linear_cross_entropy(states_nH, *head, targets_n, share_n)[0]
