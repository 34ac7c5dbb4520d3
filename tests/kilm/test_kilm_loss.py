import pytest
import torch
from torch.nn.functional import cross_entropy

from kedit.kilm.loss import ClassWeights, kilm_loss


def problem():
    torch.manual_seed(0)
    states = torch.randn(3, 8, 16, requires_grad=True)
    weight = torch.randn(50, 16)
    where = torch.tensor([0, 1, 2, 5, 8, 9, 10, 16, 23])
    targets = torch.randint(0, 50, (9,))
    classes = torch.tensor([0, 1, 2, 0, 2, 2, 1, -1, 0])
    return states, weight, where, targets, classes


def test_the_mean_over_all_tokens_with_weights_one():
    states, weight, where, targets, classes = problem()
    loss, _, _ = kilm_loss(states, weight, None, where, targets, classes, ClassWeights(copied=1.0))
    real = classes >= 0
    expected = cross_entropy(states.flatten(0, 1)[where][real] @ weight.T, targets[real])
    assert torch.allclose(loss, expected, atol=1e-5)


def test_classes_are_summed_and_weighted():
    states, weight, where, targets, classes = problem()
    weights = ClassWeights(copied=0.5, infilled=1.0, knowledge=2.0)
    loss, sums, counts = kilm_loss(states, weight, None, where, targets, classes, weights)
    nll = cross_entropy(states.flatten(0, 1)[where] @ weight.T, targets, reduction="none")
    expected = torch.stack([nll[classes == index].sum() for index in range(3)])
    assert torch.allclose(sums, expected, atol=1e-4)
    assert counts.tolist() == [3, 2, 3]
    by_hand = (0.5 * expected[0] + expected[1] + 2 * expected[2]) / (0.5 * 3 + 2 + 2 * 3)
    assert torch.allclose(loss, by_hand, atol=1e-5)
    assert not sums.requires_grad


def test_tokens_that_train_nothing_are_no_loss_and_no_gradient():
    states, weight, where, targets, classes = problem()
    loss, sums, counts = kilm_loss(states, weight, None, where, targets, torch.full_like(classes, -1), ClassWeights())
    loss.backward()
    assert loss.item() == 0
    assert not sums.any()
    assert not counts.any()
    assert not states.grad.any()


@pytest.mark.parametrize("weights", [(0, 0, 0), (1, -1, 1)])
def test_senseless_weights_are_refused(weights):
    with pytest.raises(ValueError, match="class_weights"):
        ClassWeights(*weights)
