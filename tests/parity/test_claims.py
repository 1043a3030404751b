"""What docs/others.md says of torch and no other parity test shows."""

import numpy as np
import pytest
import torch
import torch.utils.checkpoint

pytestmark = pytest.mark.parity


def test_torch_moves_the_statistics_twice_under_checkpoint():
    """Forward, and when the backward pass computes it again; ours: test_transforms.py."""
    x = torch.from_numpy(np.random.default_rng(0).normal(1, 1, (8, 5)))
    after = {}
    for recomputed in (False, True):
        layer = torch.nn.BatchNorm1d(5, dtype=torch.float64)
        rows = x.clone().requires_grad_()
        if recomputed:
            y = torch.utils.checkpoint.checkpoint(layer, rows, use_reentrant=False)
        else:
            y = layer(rows)
        y.square().sum().backward()
        after[recomputed] = layer.running_mean.numpy(), int(layer.num_batches_tracked)
    mean = x.numpy().mean(0)
    np.testing.assert_allclose(after[False][0], 0.1 * mean)
    np.testing.assert_allclose(after[True][0], 0.19 * mean)
    assert (after[False][1], after[True][1]) == (1, 2)


def test_torch_refuses_one_value_and_does_not_say_where():
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    with pytest.raises(ValueError, match="more than 1 value per channel") as refusal:
        network(torch.ones(1, 3))
    assert str(refusal.value).endswith("got input size torch.Size([1, 5])")


def test_torch_averages_all_updates_if_momentum_is_none():
    """Algorithm 2, and what `swa_utils.update_bn` does for given weights; variances m/(m-1)."""
    random = np.random.default_rng(0)
    batches = [torch.from_numpy(random.normal(1, 2, (8, 5))) for _ in range(3)]
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(5, dtype=torch.float64))
    torch.optim.swa_utils.update_bn(batches, network)
    layer = torch.nn.BatchNorm1d(5, momentum=None, dtype=torch.float64)
    for batch in batches:
        layer(batch)
    exact = np.mean([batch.numpy().var(0, ddof=1) for batch in batches], axis=0)
    np.testing.assert_allclose(layer.running_var.numpy(), exact)
    np.testing.assert_allclose(network[0].running_var.numpy(), exact)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch's own import
def test_torch_folds_a_whole_model():
    """By `torch.fx`: no normalization is left, and the outputs are the same."""
    from torch.fx.experimental.optimization import fuse

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).double()
    x = torch.from_numpy(np.random.default_rng(0).normal(1, 2, (8, 3, 6, 6)))
    network(x)
    folded = fuse(network.eval())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    np.testing.assert_allclose(folded(x).detach(), network(x).detach(), rtol=1e-10, atol=1e-12)
