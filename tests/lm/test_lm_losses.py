import pytest
import torch

from kedit.lm.losses import linear_cross_entropy, linear_nll


def problem(dtype=torch.float32, bias=True):
    torch.manual_seed(0)
    hidden = torch.randn(37, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(50, 16, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randn(50) if bias else None, torch.randint(0, 50, (37,)), torch.rand(37)


def naive(hidden, weight, bias, targets, weights):
    logits = (hidden @ weight.T).float() + (0 if bias is None else bias)
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return (nll * weights).sum(), nll


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [1, 5, 37, None])
def test_values_and_gradients_equal_the_plain_one(chunk, bias):
    hidden, weight, b, targets, weights = problem(bias=bias)
    loss, nll = linear_cross_entropy(hidden, weight, b, targets, weights, chunk)
    (3 * loss).backward()
    ours = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    expected, expected_nll = naive(hidden, weight, b, targets, weights)
    (3 * expected).backward()
    assert torch.allclose(loss, expected, atol=1e-5)
    assert torch.allclose(nll, expected_nll, atol=1e-5)
    assert not nll.requires_grad
    assert torch.allclose(ours[0], hidden.grad, atol=1e-5)
    assert torch.allclose(ours[1], weight.grad, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Input")
def test_gradcheck():
    torch.manual_seed(0)
    hidden = torch.randn(5, 4, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(7, 4, dtype=torch.float32, requires_grad=True)
    targets, weights = torch.randint(0, 7, (5,)), torch.rand(5)
    function = lambda h, w: linear_cross_entropy(h, w, None, targets, weights, 2)[0]  # noqa: E731
    assert torch.autograd.gradcheck(function, (hidden, weight), eps=1e-2, atol=1e-2, rtol=1e-2, raise_exception=True)


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, b, targets, weights = problem()
    weight.requires_grad_(False)
    linear_cross_entropy(hidden, weight, b, targets, weights)[0].backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_bfloat16_and_autocast_stay_near_float32():
    hidden, weight, b, targets, weights = problem()
    exact = naive(hidden, weight, b, targets, weights)[0].item()
    low = linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), b, targets, weights, 8)[0]
    assert low.item() == pytest.approx(exact, rel=2e-2)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = linear_cross_entropy(hidden, weight, b, targets, weights, 8)[0]
    mixed.backward()
    assert mixed.item() == pytest.approx(low.item(), rel=1e-6)
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


def test_scoring_keeps_no_graph():
    hidden, weight, b, targets, weights = problem()
    nll = linear_nll(hidden, weight, b, targets)
    assert not nll.requires_grad
    assert torch.allclose(nll, naive(hidden, weight, b, targets, weights)[1], atol=1e-5)


def test_no_tokens_is_no_loss():
    hidden, weight, b, _, _ = problem()
    loss, nll = linear_cross_entropy(hidden[:0], weight, b, torch.zeros(0, dtype=torch.long), torch.zeros(0), 4)
    loss.backward()
    assert loss.item() == 0
    assert len(nll) == 0
    assert not weight.grad.any()
