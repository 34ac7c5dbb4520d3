import math

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from kedit.lm import divergences
from kedit.lm.divergences import Head, TopK, linear_divergence, linear_divergence_top_k, top_k
from kedit.lm.losses import linear_cross_entropy

KINDS = ["forward_kl", "reverse_kl", "jsd"]
N, V = 37, 50


def problem(dtype=torch.float32, seed=0):
    """Student of width 16, teacher of width 24, both with a bias; weights that are no powers of two."""
    torch.manual_seed(seed)
    student, teacher = torch.randn(N, 16, dtype=dtype), torch.randn(N, 24, dtype=dtype)
    weights = torch.rand(N, dtype=torch.promote_types(dtype, torch.float32))
    head = Head(torch.randn(V, 16, dtype=dtype), torch.randn(V, dtype=dtype))
    for tensor in (student, *head):
        tensor.requires_grad_()
    return student, head, teacher, Head(torch.randn(V, 24, dtype=dtype), torch.randn(V, dtype=dtype)), weights


def naive(kind, student, head, teacher, teacher_head, weights, temperature=1.0, beta=0.5):
    log_q = log_softmax((student @ head.weight_VD.T + head.bias_V) / temperature, 1)
    log_p = log_softmax((teacher @ teacher_head.weight_VD.T + teacher_head.bias_V) / temperature, 1)
    each = {"reduction": "none", "log_target": True}
    if kind == "forward_kl":
        divergence = kl_div(log_q, log_p, **each).sum(1)
    elif kind == "reverse_kl":
        divergence = kl_div(log_p, log_q, **each).sum(1)
    else:
        log_m = (beta * log_p.exp() + (1 - beta) * log_q.exp()).log()
        to_p, to_q = kl_div(log_m, log_p, **each).sum(1), kl_div(log_m, log_q, **each).sum(1)
        divergence = beta * to_p + (1 - beta) * to_q
    return temperature**2 * (weights * divergence).sum(), divergence


def gradients(loss, student, head):
    return torch.autograd.grad(3 * loss, (student, *head))


def near(ours, expected, relative):
    """Within a share of the largest entry."""
    return (ours - expected).abs().max() <= relative * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("temperature", "beta", "chunk"), [(1.0, 0.5, 1), (2.0, 0.1, 5), (0.7, 0.9, None)])
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_values_and_gradients_equal_the_plain_one(kind, temperature, beta, chunk, dtype, relative):
    student, head, teacher, teacher_head, weights = problem(dtype)
    loss, each = linear_divergence(student, head, teacher, teacher_head, weights, kind, temperature, beta, chunk)
    exact = problem(torch.float64)
    if dtype == torch.float32:  # the same numbers, in float64
        exact = student.double(), Head(*(x.double() for x in head)), teacher.double(), None, weights.double()
        exact = (*exact[:3], Head(*(x.double() for x in teacher_head)), exact[4])
    expected, expected_each = naive(kind, *exact, temperature, beta)
    assert loss.item() == pytest.approx(expected.item(), rel=relative)
    assert near(each, expected_each, 2e-6)
    assert each.dtype == torch.float32
    assert not each.requires_grad
    for ours, theirs in zip(gradients(loss, student, head), gradients(expected, *exact[:2]), strict=True):
        assert near(ours, theirs, relative)


def test_temperature_squared_over_two_ids_by_hand():
    # student logits (0, 2a), teacher logits (2b, 0), T = 2: q = sigmoid(a) on id 1, p = sigmoid(b) on id 0
    a, b = 0.3, 0.8
    student, teacher = torch.tensor([[0.0, 2 * a]]), torch.tensor([[2 * b, 0.0]])
    p, q = 1 / (1 + math.exp(-b)), 1 - 1 / (1 + math.exp(-a))
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    eye = Head(torch.eye(2))
    loss, each = linear_divergence(student, eye, teacher, eye, torch.ones(1), temperature=2.0)
    assert each.item() == pytest.approx(expected, rel=1e-6)
    assert loss.item() == pytest.approx(4 * expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_numbers_are_exactly_nothing(kind, dtype):
    student, head, _, _, weights = problem(dtype)
    frozen = Head(*(x.detach().clone() for x in head))
    loss, each = linear_divergence(student, head, student.detach().clone(), frozen, weights, kind, 2.0, 0.3, 8)
    assert loss.item() == 0
    assert not each.any()
    assert not any(gradient.any() for gradient in gradients(loss, student, head))


@pytest.mark.parametrize("kind", KINDS)
def test_certain_and_opposed_distributions_stay_finite(kind):
    torch.manual_seed(0)
    student = (1000 * torch.eye(4)[[0, 1, 2]]).requires_grad_()
    head = Head(torch.eye(4).requires_grad_())
    loss, each = linear_divergence(student, head, student.detach().flip(0), Head(torch.eye(4)), torch.ones(3), kind)
    expected = {"jsd": [math.log(2), 0.0, math.log(2)]}.get(kind, [1000.0, 0.0, 1000.0])
    assert each.tolist() == pytest.approx(expected)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (student, head.weight_VD)))


def test_only_what_trains_gets_a_gradient():
    student, head, teacher, teacher_head, weights = problem()
    teacher.requires_grad_()
    teacher_head.weight_VD.requires_grad_()
    head.bias_V.requires_grad_(False)
    linear_divergence(student, head, teacher, teacher_head, weights)[0].backward()
    assert teacher.grad is None
    assert teacher_head.weight_VD.grad is None
    assert head.bias_V.grad is None
    assert student.grad.any()
    assert head.weight_VD.grad.any()
    frozen = Head(head.weight_VD.detach(), head.bias_V)
    expected = student.grad.clone()
    student.grad = None
    linear_divergence(student, frozen, teacher, teacher_head, weights)[0].backward()
    assert torch.equal(student.grad, expected)


def test_no_gradient_is_computed_where_none_is_wanted(monkeypatch):
    student, head, teacher, teacher_head, weights = problem()
    expected = linear_divergence(student, head, teacher, teacher_head, weights)[0].item()
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda *_: pytest.fail("head gradient computed"))
    with torch.no_grad():
        loss, _ = linear_divergence(student, head, teacher, teacher_head, weights)
    assert loss.item() == expected
    assert not loss.requires_grad
    with torch.no_grad():
        linear_cross_entropy(student, *head, torch.arange(N), weights)


def test_gradients_serve_one_backward_pass():
    student, head, teacher, teacher_head, weights = problem()
    loss, _ = linear_divergence(student, head, teacher, teacher_head, weights)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_and_autocast_stay_near_float32(kind):
    # bfloat16 keeps 8 bits of logits near 10: half a per cent of the loss, and of the gradient's largest entry
    student, head, teacher, teacher_head, weights = problem()
    exact = linear_divergence(student, head, teacher, teacher_head, weights, kind)[0]
    low_student = student.detach().bfloat16().requires_grad_()
    low_head = Head(*(x.detach().bfloat16().requires_grad_() for x in head))
    low_teacher = Head(*(x.bfloat16() for x in teacher_head))
    low = linear_divergence(low_student, low_head, teacher.bfloat16(), low_teacher, weights, kind, chunk=8)[0]
    assert low.item() == pytest.approx(exact.item(), rel=5e-3)
    expected = gradients(exact, student, head)
    for ours, theirs in zip(gradients(low, low_student, low_head), expected, strict=True):
        assert ours.dtype == torch.bfloat16
        assert near(ours.float(), theirs, 3e-2)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = linear_divergence(student, head, teacher, teacher_head, weights, kind, chunk=8)[0]
    assert mixed.item() == pytest.approx(exact.item(), rel=5e-3)
    for ours, theirs in zip(gradients(mixed, student, head), expected, strict=True):
        assert ours.dtype == torch.float32
        assert near(ours, theirs, 3e-2)


def test_states_and_heads_of_several_dtypes():
    student, head, teacher, teacher_head, weights = problem()
    loss, _ = linear_divergence(student, head, teacher.bfloat16(), teacher_head, weights)
    expected, _ = linear_divergence(student, head, teacher.bfloat16().float(), teacher_head, weights)
    assert loss.item() == expected.item()
    low = Head(*(x.bfloat16() for x in teacher_head))
    assert linear_divergence(student, head, teacher, low, weights)[0].item() == pytest.approx(expected.item(), rel=5e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_teacher_shows_in_the_loss(kind, value):
    student, head, teacher, teacher_head, weights = problem()
    teacher[3, 2] = value
    assert linear_divergence(student, head, teacher, teacher_head, weights, kind)[0].isnan()
    kept = top_k(teacher, teacher_head, 5)
    assert linear_divergence_top_k(student, head, *kept, weights)[0].isnan()


def test_no_positions_are_no_loss():
    student, head, teacher, teacher_head, weights = problem()
    loss, each = linear_divergence(student[:0], head, teacher[:0], teacher_head, weights[:0])
    loss.backward()
    assert loss.item() == 0
    assert len(each) == 0
    assert not head.weight_VD.grad.any()
    assert len(top_k(teacher[:0], teacher_head, 3).mass_N) == 0


def test_other_vocabularies_are_refused():
    student, head, teacher, teacher_head, weights = problem()
    with pytest.raises(ValueError, match="student's vocabulary has 50 ids and the teacher's 49"):
        linear_divergence(student, head, teacher, Head(teacher_head.weight_VD[:49]), weights)
    with pytest.raises(ValueError, match="top_k is 51, wanted 1 to 50"):
        top_k(teacher, teacher_head, 51)


def test_chunks_never_hold_everything(monkeypatch):
    student, head, teacher, teacher_head, weights = problem()
    monkeypatch.setattr(divergences, "CHUNK_ELEMENTS", 4 * V + 1)
    seen = []
    plain = divergences._log_probs
    monkeypatch.setattr(divergences, "_log_probs", lambda h, *rest: seen.append(len(h)) or plain(h, *rest))
    linear_divergence(student, head, teacher, teacher_head, weights)
    top_k(teacher, teacher_head, 3)
    assert set(seen) == {4, 1}
    assert sum(seen) == 3 * N


def top_k_naive(log_q, log_p, k):
    p, ids = log_p.exp().topk(k, dim=1)
    q = log_q.exp().gather(1, ids)
    tail = torch.cat([p, 1 - p.sum(1, keepdim=True)], 1), torch.cat([q, 1 - q.sum(1, keepdim=True)], 1)
    return (tail[0] * (tail[0] / tail[1]).log()).sum(1)


@pytest.mark.parametrize("chunk", [5, None])
@pytest.mark.parametrize("k", [1, 7, 49])
def test_top_ids_with_a_tail_equal_the_plain_one(k, chunk):
    student, head, teacher, teacher_head, weights = problem(torch.float64)
    kept = top_k(teacher, teacher_head, k, 2.0, chunk)
    log_p = log_softmax((teacher @ teacher_head.weight_VD.T + teacher_head.bias_V) / 2, 1)
    assert kept.ids_NK.dtype == torch.int32
    assert kept.log_probs_NK.dtype == torch.float32
    assert torch.equal(kept.ids_NK, log_p.topk(k, dim=1).indices.int())
    assert torch.allclose(kept.mass_N, log_p.exp().topk(k, dim=1).values.sum(1).float(), rtol=1e-6)
    loss, each = linear_divergence_top_k(student, head, *kept, weights, 2.0, chunk)
    expected_each = top_k_naive(log_softmax((student @ head.weight_VD.T + head.bias_V) / 2, 1), log_p, k)
    expected = 4 * (weights * expected_each).sum()
    assert near(each, expected_each, 2e-6)
    assert not each.requires_grad
    for ours, theirs in zip(gradients(loss, student, head), gradients(expected, student, head), strict=True):
        assert near(ours, theirs, 3e-6)  # the teacher's probabilities are kept in float32
    full = linear_divergence(student, head, teacher, teacher_head, weights, temperature=2.0)[1]
    assert (each <= full + 1e-6).all()


def test_all_ids_are_the_whole_divergence():
    student, head, teacher, teacher_head, weights = problem()
    kept = top_k(teacher, teacher_head, V, 2.0)
    loss, each = linear_divergence_top_k(student, head, *kept, weights, 2.0)
    expected, expected_each = linear_divergence(student, head, teacher, teacher_head, weights, temperature=2.0)
    assert near(each, expected_each, 2e-6)
    for ours, theirs in zip(gradients(loss, student, head), gradients(expected, student, head), strict=True):
        assert near(ours, theirs, 2e-6)


def test_the_tail_is_never_negative():
    # kept probabilities that rounding carries over 1, and a student that leaves next to nothing beside them
    student = torch.tensor([[200.0, 199.0, 0.0]], requires_grad=True)
    kept = TopK(torch.tensor([[0, 1]], dtype=torch.int32), torch.tensor([[0.75, 0.2501]]).log())
    loss, each = linear_divergence_top_k(student, Head(torch.eye(3)), *kept, torch.ones(1))
    q = 1 / (1 + math.exp(-1))
    expected = 0.75 * math.log(0.75 / q) + 0.2501 * math.log(0.2501 / (1 - q))
    assert each.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert student.grad.isfinite().all()
    # and a tail of the teacher where the student has e^-199: -tail * log s, its gradient pulls the third id up by it
    student.grad = None
    kept = TopK(kept.ids_NK, torch.tensor([[0.7, 0.2]]).log())
    loss, _ = linear_divergence_top_k(student, Head(torch.eye(3)), *kept, torch.ones(1))
    loss.backward()
    assert loss.item() == pytest.approx(0.1 * 200, rel=0.1)
    assert student.grad[0, 2].item() == pytest.approx(-0.1, rel=1e-4)


def test_cross_entropy_trains_a_bias_that_is_a_parameter():
    student, head, _, _, weights = problem()
    targets = torch.arange(N)
    loss, _ = linear_cross_entropy(student, *head, targets, weights, 5)
    each = cross_entropy(student @ head.weight_VD.T + head.bias_V, targets, reduction="none")
    for ours, theirs in zip(
        gradients(loss, student, head), gradients((each * weights).sum(), student, head), strict=True
    ):
        assert near(ours, theirs, 2e-6)
