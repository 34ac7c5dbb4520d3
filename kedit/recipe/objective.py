"""What is minimised: the terms of a step, by name, each a mean in nats over all processes, weighed and added.

The default networks learn to find keys by `loss.finding_loss`, the paper's by its own terms. Knows no Lightning.

Shapes: Q queries, K keys of all processes, M edits of this one, n target tokens of all rows of the language model, H
width of its final states.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from kedit.lm.divergences import Head, linear_divergence
from kedit.lm.losses import linear_cross_entropy
from kedit.recipe.batch import Kind, RecipeBatch
from kedit.recipe.loss import Summed, finding_loss
from kedit.recipe.networks import MemoryNetworks, SlotNetworks
from kedit.recipe.prefix import PrefixedModel
from kedit.recipe.processes import Alone


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
        keys_MD: keys of this process's edits.
    """

    similarity_QK: Tensor
    threshold_Q: Tensor
    keys_MD: Tensor


class Objective(ABC):
    """The terms of a step.

    Args:
        weights: of the terms.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    @abstractmethod
    def finding(
        self, networks: MemoryNetworks, batch: RecipeBatch, processes: Alone
    ) -> tuple[dict[str, Summed], Found]:
        """Terms of finding the right key."""

    def vectors(self, networks: MemoryNetworks, model: PrefixedModel, batch: RecipeBatch, found: Found) -> Tensor:
        """Prompt vectors [M, T, E] of this process's edits."""
        return networks.prompts(batch.edits, model.token_embeddings)

    @abstractmethod
    def told(self, states_nH: Tensor, head: Head, targets_n: Tensor) -> Summed:
        """The loss of target tokens."""

    def __call__(
        self, networks: MemoryNetworks, model: PrefixedModel, batch: RecipeBatch, base_nH: Tensor | None,
        processes: Alone | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], Found]:  # fmt: skip
        """The loss, its terms without gradient, and the similarities.

        Of several processes each gives its part times their number: the mean over processes is the loss.

        Args:
            networks: which learn.
            model: frozen.
            batch: the step's texts.
            base_nH: final states of the language model alone at the target tokens of locality rows.
            processes: of the step; by default this one alone.
        """
        processes = processes or Alone()
        sums, found = self.finding(networks, batch, processes)
        weights = dict.fromkeys(sums, self.weights.finding)
        if self.weights.reliability or self.weights.generality or self.weights.locality:
            prompts_MTE = self.vectors(networks, model, batch, found)
            states_nH = model.target_states(batch.rows, prompts_MTE[batch.edit_R])
            kind_n = batch.kind_R[batch.rows.row_n]
            head = Head(*model.head())
            for kind, name in ((Kind.RELIABILITY, "reliability"), (Kind.GENERALITY, "generality")):
                chosen = (kind_n == kind).nonzero()[:, 0]
                sums[name] = self.told(states_nH[chosen], head, batch.rows.target_n[chosen])
                weights[name] = getattr(self.weights, name)
            if base_nH is not None:
                own_nH = states_nH[(kind_n == Kind.LOCALITY).nonzero()[:, 0]]
                ones_n = torch.ones(len(own_nH), device=own_nH.device)
                sums["locality"] = Summed(linear_divergence(own_nH, head, base_nH, head, ones_n)[0], ones_n.sum())
                weights["locality"] = self.weights.locality
        terms = processes.means(sums)
        total = sum((weights[name] * term for name, term in terms.items()), found.threshold_Q.new_zeros(()))
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

    def finding(
        self, networks: MemoryNetworks, batch: RecipeBatch, processes: Alone
    ) -> tuple[dict[str, Summed], Found]:
        assert isinstance(networks, SlotNetworks)
        queries_QD = networks.queries(batch.queries)[: len(batch.own_Q)]
        with torch.no_grad():
            negatives_FD = queries_QD[:0]
            if batch.negative_count:
                negatives_FD = processes.gather(networks.keys(batch.negatives), batch.negative_count)
        keys_MD = networks.keys(batch.keys)
        keys_KD = torch.cat([processes.gather(keys_MD, batch.edit_count), negatives_FD])
        similarity_QK, threshold_Q = networks.similarities(queries_QD, keys_KD), networks.threshold(queries_QD)
        loss = finding_loss(
            similarity_QK, threshold_Q, batch.own_Q, batch.ignore_QK, networks.scale, self.margin
        )  # fmt: skip
        return {f"finding/{name}": term for name, term in loss._asdict().items()}, Found(
            similarity_QK.detach(), threshold_Q.detach(), keys_MD
        )

    def told(self, states_nH: Tensor, head: Head, targets_n: Tensor) -> Summed:
        ones_n = torch.ones(len(targets_n), device=states_nH.device)
        return Summed(linear_cross_entropy(states_nH, *head, targets_n, ones_n)[0], ones_n.sum())
