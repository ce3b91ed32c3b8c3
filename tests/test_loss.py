"""The dynamic mutual loss: hand-computed weights, gradients against autograd of the plain formula, no host reads."""

import math

import pytest
import torch
import torch.nn.functional as F

from dmt.loss import DynamicMutualLoss, pixel_weights


def plain_formula(logits, labels, confidence, num_pseudo, gamma1, gamma2, ignore_index=255):
    """The loss as the paper writes it, with ordinary autograd; returns (loss, weights)."""
    valid = labels != ignore_index
    y = torch.where(valid, labels, 0).long()
    q = logits.detach().softmax(1)
    q_label = q.gather(1, y[:, None])[:, 0]
    q_max, a = q.max(1)
    weight = torch.where(a == y, q_label**gamma1, torch.where(q_max > confidence, 0.0, q_label**gamma2))
    if gamma1 == 0 and gamma2 == 0:
        weight = torch.ones_like(weight)
    weight[num_pseudo:] = 1
    weight = weight * valid
    cross_entropy = F.cross_entropy(logits, y, reduction="none")
    return (weight * cross_entropy).sum() / valid.sum(), weight


def random_batch(seed=0, dtype=torch.float32, shape=(4, 5, 6, 7), ignore_index=255):
    generator = torch.Generator().manual_seed(seed)
    n, c, h, w = shape
    logits = torch.randn(shape, generator=generator, dtype=dtype) * 2
    labels = torch.randint(0, c, (n, h, w), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = ignore_index
    return logits.requires_grad_(), labels, torch.rand((n, h, w), generator=generator)


def pixels(*probabilities):
    """Logits (1, C, 1, pixels) whose softmax is the given probabilities."""
    return torch.tensor(probabilities, dtype=torch.float64).log().T[None, :, None, :]


def test_hand_computed_weights():
    # q = (0.5, 0.25, 0.25) at five pixels, so a = 0 and max q = 0.5; gamma1 = 2, gamma2 = 3.
    logits = pixels(*[(0.5, 0.25, 0.25)] * 5).requires_grad_()
    labels = torch.tensor([[[0, 1, 1, 2, 255]]])
    confidence = torch.tensor([[[0.1, 0.4, 0.9, 0.6, 0.9]]], dtype=torch.float64)
    loss, statistics = DynamicMutualLoss(2, 3)(logits, labels, confidence, 1)
    # agreement 0.5^2 = 0.25 · log 2; student wins (0.5 > 0.4): 0; twice 0.25^3 = 1/64 · log 4; four valid pixels.
    assert loss.item() == pytest.approx((0.25 * math.log(2) + 2 / 64 * math.log(4)) / 4, rel=1e-12)
    assert statistics["disagreements"].item() == 3
    assert statistics["student_wins"].item() == 1
    assert statistics["pseudo_pixels"].item() == statistics["valid_pixels"].item() == 4
    assert statistics["mean_weight"].item() == pytest.approx((0.25 + 2 / 64) / 4)
    assert statistics["unweighted_loss"].item() == pytest.approx((math.log(2) + 3 * math.log(4)) / 4)
    assert statistics["prediction"].tolist() == [[[0] * 5]]


def test_a_tie_with_the_teacher_is_no_win():
    # q = (0.5, 0.5): the first of equals is 0, the label is 1, so they disagree; p = 0.5 equals max q exactly.
    logits = torch.zeros(1, 2, 1, 1)
    loss, statistics = DynamicMutualLoss(1, 1)(logits, torch.tensor([[[1]]]), torch.tensor([[[0.5]]]), 1)
    assert statistics["prediction"].item() == 0
    assert (statistics["disagreements"].item(), statistics["student_wins"].item()) == (1, 0)
    assert loss.item() == pytest.approx(0.5 * math.log(2))
    below = torch.nextafter(torch.tensor([[[0.5]]]), torch.tensor(0.0))
    loss, statistics = DynamicMutualLoss(1, 1)(logits, torch.tensor([[[1]]]), below, 1)
    assert (loss.item(), statistics["student_wins"].item()) == (0, 1)


def test_labelled_samples_count_fully_and_share_the_denominator():
    # Sample 0 pseudo-labelled and lost by the teacher (w = 0), sample 1 labelled (w = 1): log 4 / 2.
    logits = pixels((0.75, 0.25)).repeat(2, 1, 1, 1)
    labels = torch.ones(2, 1, 1, dtype=torch.int64)
    loss, statistics = DynamicMutualLoss(5, 5)(logits, labels, torch.full((2, 1, 1), 0.5), 1)
    assert loss.item() == pytest.approx(math.log(4) / 2)
    assert statistics["disagreements"].item() == 1  # the labelled pixel disagrees too, but is no pseudo label
    assert statistics["mean_weight"].item() == 0.5


def test_gammas_of_zero_turn_weighting_off():
    logits, labels, _ = random_batch(1)
    confidence = torch.zeros(labels.shape)  # the student would win everywhere
    loss, statistics = DynamicMutualLoss(0, 0)(logits, labels, confidence, 4)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, labels, ignore_index=255).item(), rel=1e-5)
    assert statistics["mean_weight"].item() == 1
    assert statistics["student_wins"].item() == statistics["disagreements"].item() > 0


def test_one_gamma_of_zero_keeps_the_disagreement_rule():
    q_label, q_max = torch.tensor([0.6, 0.3, 0.3]), torch.tensor([0.6, 0.6, 0.6])
    agrees, p = torch.tensor([True, False, False]), torch.tensor([0.1, 0.5, 0.7])
    assert pixel_weights(q_label, q_max, agrees, p, 0, 1).tolist() == pytest.approx([1, 0, 0.3])
    assert pixel_weights(q_label, q_max, agrees, p, 1, 0).tolist() == pytest.approx([0.6, 0, 1])
    assert pixel_weights(q_label, q_max, agrees, p, 0, 0).tolist() == [1, 1, 1]


@pytest.mark.parametrize("arguments", [(), (None, None), (torch.zeros(4, 6, 7), 0)])
def test_supervised_is_mean_cross_entropy(arguments):
    logits, labels, _ = random_batch(2)
    reference = logits.detach().clone().requires_grad_()
    expected = F.cross_entropy(reference, labels, ignore_index=255)
    expected.backward()
    loss, statistics = DynamicMutualLoss(5, 5)(logits, labels, *arguments)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits.grad, reference.grad)
    assert statistics["disagreements"].item() == 0
    torch.testing.assert_close(statistics["unweighted_loss"], expected.detach())


@pytest.mark.parametrize("gamma1, gamma2", [(5, 5), (3, 1.5), (0, 2), (0, 0)])
@pytest.mark.parametrize("ignore_index", [255, -100])
def test_value_and_gradient_equal_the_plain_formula(gamma1, gamma2, ignore_index):
    logits, labels, confidence = random_batch(3, torch.float64, ignore_index=ignore_index)
    reference = logits.detach().clone().requires_grad_()
    expected, weight = plain_formula(reference, labels, confidence.double(), 3, gamma1, gamma2, ignore_index)
    (expected * 7).backward()
    loss, statistics = DynamicMutualLoss(gamma1, gamma2, ignore_index)(logits, labels, confidence, 3)
    (loss * 7).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits.grad, reference.grad)
    torch.testing.assert_close(statistics["mean_weight"], weight.sum() / (labels != ignore_index).sum())


def test_gradcheck_of_the_weighted_part():
    # Labelled samples only: w depends on the logits by design without gradient, which gradcheck could not know.
    logits, labels, _ = random_batch(4, torch.float64, (2, 3, 2, 3))
    assert torch.autograd.gradcheck(lambda x: DynamicMutualLoss(5, 5)(x, labels)[0], (logits,))


def test_a_retained_graph_gives_the_same_gradient_twice():
    logits, labels, confidence = random_batch(5)
    loss, _ = DynamicMutualLoss(5, 5)(logits, labels, confidence, 3)
    first, = torch.autograd.grad(loss, logits, retain_graph=True)
    kept = first.clone()
    second, = torch.autograd.grad(loss, logits)
    assert torch.equal(first, kept) and torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_half_precision_is_computed_in_float32(dtype, memory_format):
    logits, labels, confidence = random_batch(6)
    half = logits.detach().to(dtype, memory_format=memory_format).requires_grad_()
    full = half.detach().float().requires_grad_()
    loss, _ = DynamicMutualLoss(5, 5)(half, labels, confidence, 3)
    expected, _ = DynamicMutualLoss(5, 5)(full, labels, confidence, 3)
    (loss * 1024).backward()
    (expected * 1024).backward()
    assert loss.dtype == torch.float32 and half.grad.dtype == dtype
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(half.grad, full.grad.to(dtype))


def test_autocast_changes_nothing():
    logits, labels, confidence = random_batch(7)
    expected, _ = DynamicMutualLoss(5, 5)(logits, labels, confidence, 3)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = DynamicMutualLoss(5, 5)(logits, labels, confidence, 3)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)


def test_no_valid_pixel_gives_exactly_zero():
    logits, labels, confidence = random_batch(8)
    loss, statistics = DynamicMutualLoss(5, 5)(logits, torch.full_like(labels, 255), confidence, 3)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()
    for name in ("disagreements", "student_wins", "mean_weight", "unweighted_loss", "pseudo_pixels", "valid_pixels"):
        assert statistics[name].item() == 0 and statistics[name].ndim == 0


def test_extreme_logits_stay_finite():
    # q[y] underflows to 0 in the first pixel: cross-entropy 1000, weight 1 as it is labelled.
    logits = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]).reshape(1, 2, 1, 2).requires_grad_()
    loss, _ = DynamicMutualLoss(5, 5)(logits, torch.ones(1, 1, 2, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 500
    assert logits.grad.flatten().tolist() == [0.5, 0, -0.5, 0]


@pytest.mark.parametrize("change", ["uint8 labels", "channels last", "float64 confidence", "strided"])
def test_layouts_and_dtypes_do_not_matter(change):
    logits, labels, confidence = random_batch(9)
    expected, _ = DynamicMutualLoss(5, 5)(logits, labels, confidence, 3)
    gradient, = torch.autograd.grad(expected, logits)
    if change == "uint8 labels":
        labels = labels.to(torch.uint8)
    elif change == "channels last":
        logits = logits.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    elif change == "strided":
        logits = logits.detach().repeat_interleave(2, dim=3)[..., ::2].requires_grad_()
    else:
        confidence = confidence.double()
    loss, _ = DynamicMutualLoss(5, 5)(logits, labels, confidence, 3)
    result, = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(result, gradient)
    # The upsampling before the loss goes backward several times faster in the layout it came forward in.
    assert result.is_contiguous(memory_format=torch.channels_last) == (change == "channels last")


def test_inputs_stay_as_they_are_and_nothing_needs_a_gradient_in_no_grad():
    logits, labels, confidence = random_batch(10)
    before = [tensor.detach().clone() for tensor in (logits, labels, confidence)]
    loss, statistics = DynamicMutualLoss(5, 5)(logits, labels, confidence, 3)
    loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(before, (logits.detach(), labels, confidence)))
    assert not any(value.requires_grad for value in statistics.values())
    with torch.no_grad():
        again, _ = DynamicMutualLoss(5, 5)(logits, labels, confidence, 3)
    assert not again.requires_grad and torch.equal(again, loss.detach())


def test_nothing_makes_the_host_wait(monkeypatch):
    logits, labels, confidence = random_batch(11)
    criterion = DynamicMutualLoss(5, 3)

    def refuse(*_, **__):
        raise AssertionError("the host reads a tensor")

    for name in ("item", "cpu", "numpy", "tolist", "nonzero", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    with _RefusesReadingOperators():
        loss, _ = criterion(logits, labels, confidence, 3)
        loss.backward()
    monkeypatch.undo()
    assert logits.grad.any()


class _RefusesReadingOperators(torch.utils._python_dispatch.TorchDispatchMode):
    """Fails on operators that read values back on a GPU, called from Python or not."""

    _READING = ("_local_scalar_dense", "nonzero", "masked_select", "index.Tensor", "bincount", "is_nonzero", "equal")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert not any(str(function).startswith(f"aten.{name}") for name in self._READING), function
        return function(*args, **(kwargs or {}))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_without_waiting():
    logits, labels, confidence = random_batch(12)
    expected, _ = DynamicMutualLoss(5, 3)(logits, labels, confidence, 3)
    gradient, = torch.autograd.grad(expected, logits)
    there = [tensor.detach().cuda() for tensor in (logits, labels, confidence)]
    there[0].requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, _ = DynamicMutualLoss(5, 3)(*there, 3)
        result, = torch.autograd.grad(loss, there[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(loss.cpu(), expected)
    torch.testing.assert_close(result.cpu(), gradient)


@pytest.mark.parametrize("change, message", [
    ({"logits": torch.zeros(2, 3, 4)}, "logits must be"),
    ({"logits": torch.zeros(2, 3, 4, 4, dtype=torch.int64)}, "logits must be"),
    ({"labels": torch.zeros(2, 4, 5, dtype=torch.int64)}, "labels must be"),
    ({"labels": torch.zeros(2, 4, 4)}, "labels must be integers"),
    ({"confidence": torch.zeros(1, 4, 4)}, "confidence must be"),
    ({"confidence": None}, "belong together"),
    ({"num_pseudo": None}, "belong together"),
    ({"num_pseudo": 3}, "num_pseudo must be in 0..2"),
    ({"num_pseudo": -1}, "num_pseudo must be in 0..2"),
])
def test_what_does_not_fit_is_refused(change, message):
    arguments = {"logits": torch.zeros(2, 3, 4, 4), "labels": torch.zeros(2, 4, 4, dtype=torch.int64),
                 "confidence": torch.zeros(2, 4, 4), "num_pseudo": 1} | change
    with pytest.raises(ValueError, match=message):
        DynamicMutualLoss(5, 5)(**arguments)


@pytest.mark.parametrize("gammas", [(-1, 0), (0, math.nan), (math.inf, 1)])
def test_wrong_gammas_are_refused(gammas):
    with pytest.raises(ValueError, match="gamma1 and gamma2"):
        DynamicMutualLoss(*gammas)


def test_an_empty_batch_gives_zero():
    loss, _ = DynamicMutualLoss(5, 5)(torch.zeros(0, 3, 4, 4), torch.zeros(0, 4, 4, dtype=torch.int64))
    assert loss.item() == 0
