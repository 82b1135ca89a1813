"""Muon: what it computes beside singular vectors in float64, and a state that torch's can read."""

import copy
import math

import pytest
import torch

from foveal.training import muon
from foveal.training.muon import Muon, orthogonalize

SHAPES = [(5, 5), (8, 24), (24, 8), (1, 7), (7, 1), (24, 8), (3, 3), (48, 80)]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def products(request, monkeypatch):
    """Both precisions, whichever of them this machine multiplies faster."""
    monkeypatch.setattr(muon, "fast_dtype", lambda device, dtype: request.param)
    return request.param


def with_singular_values(values, rows, columns, seed=0):
    """A random matrix of those singular values, and its polar factor, in float64."""
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, columns, generator=random, dtype=torch.float64)
    left, _, right = torch.linalg.svd(noise, full_matrices=False)
    return left * torch.as_tensor(values, dtype=torch.float64) @ right, left @ right


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e6])
def test_singular_values_come_near_one(products, rows, columns, size):
    """Down to a hundredth of the largest, in any shape and size; singular vectors stay."""
    values = torch.logspace(0, -1.7, min(rows, columns), dtype=torch.float64)
    matrix, polar = with_singular_values(size * values, rows, columns)
    (found,) = orthogonalize([matrix.float()])
    assert found.dtype == products
    singular = torch.linalg.svdvals(found.double())
    assert 0.65 < singular.min() <= singular.max() < 1.4
    along = (found.double() * polar).sum() / (found.double().norm() * polar.norm())
    assert along > 0.97


def test_matrices_together_are_what_they_are_alone(products):
    """Equal shapes, equal sides and others in one call change no matrix beyond rounding."""
    torch.manual_seed(0)
    matrices = [torch.randn(shape) for shape in SHAPES]
    together = orthogonalize(matrices)
    for matrix, found in zip(matrices, together, strict=True):
        assert found.shape == matrix.shape
        (alone,) = orthogonalize([matrix])
        tolerance = 1e-4 if products == torch.float32 else 0.05
        torch.testing.assert_close(found, alone, atol=tolerance, rtol=0.0)


def test_nothing_becomes_nothing(products):
    """Zero gradients and matrices of one direction give numbers, not NaN."""
    torch.manual_seed(0)
    line = torch.outer(torch.randn(6), torch.randn(9))
    zero, one = orthogonalize([torch.zeros(6, 9), line])
    assert not zero.any()
    assert one.isfinite().all()
    assert torch.linalg.svdvals(one.double())[0] == pytest.approx(1.0, abs=0.35)


def test_a_step_is_the_published_one():
    """Nesterov momentum, decay, and updates of rms 0.2 times the learning rate, in float64."""
    lr, decay, momentum = 0.1, 0.5, 0.9
    parameter = torch.nn.Parameter(torch.ones(6, 9))
    optimizer = Muon([parameter], lr=lr, weight_decay=decay, momentum=momentum)
    expected, mean = torch.ones(6, 9, dtype=torch.float64), torch.zeros(6, 9, dtype=torch.float64)
    for seed in range(3):
        parameter.grad = torch.randn(6, 9, generator=torch.Generator().manual_seed(seed))
        mean = momentum * mean + (1 - momentum) * parameter.grad.double()
        ahead = momentum * mean + (1 - momentum) * parameter.grad.double()
        left, _, right = torch.linalg.svd(ahead, full_matrices=False)
        expected = (1 - lr * decay) * expected - lr * 0.2 * math.sqrt(9) * (left @ right)
        optimizer.step()
    torch.testing.assert_close(
        optimizer.state[parameter]["momentum_buffer"].double(), mean, atol=1e-6, rtol=0.0
    )
    # singular values are near one, not one
    assert (parameter.double() - expected).norm() < 0.3 * lr * 3 * math.sqrt(6)


def test_no_product_in_a_precision_that_the_processor_emulates():
    """On a CPU without bfloat16 the iterations run in float32, and so do those on no CPU class."""
    from foveal.common.processor import multiplies_bfloat16

    (found,) = orthogonalize([torch.randn(4, 6)])
    assert found.dtype == (torch.bfloat16 if multiplies_bfloat16() else torch.float32)


def test_the_state_goes_on_exactly_and_reads_that_of_torch():
    """After a round trip through its state the next steps are the same; torch's state loads."""
    torch.manual_seed(0)
    start = torch.randn(6, 9)
    grads = [torch.randn(6, 9) for _ in range(4)]

    def run(optimizer, parameter, some):
        for grad in some:
            parameter.grad = grad.clone()
            optimizer.step()
        return parameter

    whole = torch.nn.Parameter(start.clone())
    first = Muon([whole])
    run(first, whole, grads[:2])
    again = torch.nn.Parameter(whole.detach().clone())
    second = Muon([again])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(run(first, whole, grads[2:]), run(second, again, grads[2:]))

    theirs = torch.optim.Muon([torch.nn.Parameter(start.clone())], lr=0.2, momentum=0.8)
    run(theirs, theirs.param_groups[0]["params"][0], grads[:2])
    saved = theirs.state_dict()
    parameter = torch.nn.Parameter(start.clone())
    ours = Muon([parameter])
    ours.load_state_dict(copy.deepcopy(saved))
    assert ours.param_groups[0]["lr"] == 0.2
    torch.testing.assert_close(
        ours.state[parameter]["momentum_buffer"],
        saved["state"][0]["momentum_buffer"],
    )
    assert run(ours, parameter, grads[2:]).isfinite().all()


def test_what_is_no_matrix_is_refused():
    """Vectors, whole numbers and nonsense settings are named."""
    with pytest.raises(ValueError, match=r"shape \(3,\).*leave it to AdamW"):
        Muon([torch.nn.Parameter(torch.zeros(3))])
    with pytest.raises(ValueError, match="momentum must lie"):
        Muon([torch.nn.Parameter(torch.zeros(3, 3))], momentum=1.0)


def test_parameters_without_a_gradient_stay():
    """A frozen or unused matrix does not move and gets no state."""
    used, unused = (torch.nn.Parameter(torch.ones(3, 3)) for _ in range(2))
    optimizer = Muon([used, unused])
    used.grad = torch.eye(3)
    optimizer.step()
    assert torch.equal(unused, torch.ones(3, 3))
    assert not torch.equal(used, torch.ones(3, 3))
    assert unused not in optimizer.state
