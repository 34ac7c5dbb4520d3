import pytest
import torch

from kedit.distill.loss import KINDS, Divergence, distill_loss
from kedit.editing.sources import DataError
from kedit.lm.divergences import Head, linear_divergence, top_k


def problem():
    torch.manual_seed(0)
    student = torch.randn(6, 8, requires_grad=True)
    head, teacher_head = Head(torch.randn(30, 8, requires_grad=True)), Head(torch.randn(30, 12), torch.randn(30))
    weights = torch.rand(6)
    return student, head, (torch.randn(6, 12), teacher_head), weights / weights.sum(), torch.tensor([0, 2, 0, 0, 2, 0])


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_loss_is_the_weighted_divergence_and_sums_are_by_kind(kind):
    student, head, teacher, weights, kinds = problem()
    loss, sums, counts = distill_loss(student, head, teacher, weights, kinds, Divergence(kind, 3.0, 0.2))
    expected, each = linear_divergence(student, head, *teacher, weights, kind, 3.0, 0.2)
    assert loss.item() == expected.item() == pytest.approx(9 * (weights * each).sum().item())
    assert sums.tolist() == pytest.approx([each[kinds == kind].sum().item() for kind in range(len(KINDS))])
    assert counts.tolist() == [4, 0, 2]
    assert not sums.requires_grad
    loss.backward()
    assert student.grad.any()
    assert head.weight_VD.grad.any()


def test_an_empty_definition_teaches_nothing():
    student, head, _, weights, kinds = problem()
    teacher = student.detach().clone(), Head(head.weight_VD.detach().clone())
    loss, sums, _ = distill_loss(student, head, teacher, weights, kinds, Divergence())
    loss.backward()
    assert loss.item() == 0
    assert not sums.any()
    assert not student.grad.any()
    assert not head.weight_VD.grad.any()


def test_top_ids_of_everything_are_the_whole_loss():
    student, head, teacher, weights, kinds = problem()
    whole = distill_loss(student, head, teacher, weights, kinds, Divergence())[0].item()
    for k, tolerance in ((30, 1e-6), (10, 0.5)):
        kept = top_k(*teacher, k, 2.0)
        loss, sums, counts = distill_loss(student, head, kept, weights, kinds, Divergence(top_k=k))
        assert loss.item() == pytest.approx(whole, rel=tolerance)
        assert counts.tolist() == [4, 0, 2]
        assert sums[1] == 0
    assert loss.item() < whole
    with pytest.raises(ValueError, match="serve forward_kl, not divergence"):
        distill_loss(student, head, kept, weights, kinds, Divergence("jsd"))


def test_a_teacher_of_another_vocabulary_is_refused():
    student, head, (teacher, teacher_head), weights, kinds = problem()
    with pytest.raises(DataError, match="30 ids and the teacher's 29"):
        distill_loss(student, head, (teacher, Head(teacher_head.weight_VD[:29])), weights, kinds, Divergence())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "kl"}, "divergence.kind is 'kl', wanted forward_kl"),
        ({"temperature": 0.0}, "divergence.temperature is 0.0, wanted a number above 0"),
        ({"temperature": float("nan")}, "divergence.temperature is nan"),
        ({"beta": 1.0}, "divergence.beta is 1.0, wanted a number between 0 and 1"),
        ({"top_k": 0}, "divergence.top_k is 0, wanted at least 1"),
        ({"top_k": 5, "kind": "reverse_kl"}, "divergence.top_k is 5 with kind reverse_kl"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Divergence(**options)
