"""The paper's terms of a step, over its networks."""

from torch import Tensor

from kedit.lm.divergences import Head
from kedit.recipe.batch import Kind, RecipeBatch
from kedit.recipe.loss import Summed
from kedit.recipe.networks import MemoryNetworks
from kedit.recipe.objective import Found, Objective, Weights
from kedit.recipe.paper import PaperNetworks, similarity
from kedit.recipe.paper_loss import contrastive_loss, hinge_nll, roles
from kedit.recipe.prefix import PrefixedModel
from kedit.recipe.processes import Alone


class PaperObjective(Objective):
    """Contrastive terms with a coin for every edit, and the hinged label loss. Further negatives are not read.

    Args:
        weights: of the terms; `finding` is the paper's lambda of L_contra.
        hinge: a label that is likelier than the runner-up by this factor trains nothing.
    """

    def __init__(self, weights: Weights, hinge: float = 1.2) -> None:
        super().__init__(weights)
        self.hinge = hinge

    def finding(
        self, networks: MemoryNetworks, batch: RecipeBatch, processes: Alone
    ) -> tuple[dict[str, Summed], Found]:
        queries_QD = networks.queries(batch.queries)[: len(batch.own_Q)]
        keys_MD = networks.keys(batch.keys)
        similarity_QK = similarity(queries_QD, processes.gather(keys_MD, batch.edit_count))
        threshold_Q = networks.threshold(queries_QD)
        seeks_own_Q = roles(batch.own_Q, batch.kind_Q == Kind.GENERALITY, batch.coin_B)
        terms = contrastive_loss(similarity_QK, threshold_Q, batch.own_Q, seeks_own_Q, self.hinge)
        return {f"finding/{name}": term for name, term in terms._asdict().items()}, Found(
            similarity_QK.detach(), threshold_Q.detach(), keys_MD
        )

    def vectors(self, networks: MemoryNetworks, model: PrefixedModel, batch: RecipeBatch, found: Found) -> Tensor:
        """Made of the very keys of `finding`, one reading of the text, as in the paper's code."""
        assert isinstance(networks, PaperNetworks)
        return networks.prompts_of(found.keys_MD)

    def told(self, states_nH: Tensor, head: Head, targets_n: Tensor) -> Summed:
        logits_nV = states_nH @ head.weight_VD.T.to(states_nH.dtype)
        return hinge_nll(logits_nV if head.bias_V is None else logits_nV + head.bias_V, targets_n, self.hinge)
