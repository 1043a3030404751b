"""What the README says of torch and no other parity test shows."""

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
