"""torch.nn.BatchNorm1d and 2d: the same numbers with decay = 1 - momentum, unbiased statistics."""

import ours
import pytest
import torch

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("x64")]

LAYERS = {
    "dense": (torch.nn.BatchNorm1d, (12, 5)),
    "sequence": (torch.nn.BatchNorm1d, (4, 5, 3)),
    "images": (torch.nn.BatchNorm2d, (4, 5, 3, 2)),
}


def torch_run(kind, given, momentum):
    layer = kind(len(given.scale), eps=ours.EPSILON, momentum=momentum, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(given.scale))
        layer.bias.copy_(torch.from_numpy(given.bias))
    steps = []
    for x, weights in zip(given.xs, given.weights, strict=True):
        x = torch.from_numpy(x).requires_grad_()
        y = layer(x)
        gradients = torch.autograd.grad(
            (torch.from_numpy(weights) * y).sum(), (x, layer.weight, layer.bias)
        )
        steps.append([value.detach().numpy() for value in (y, *gradients)])
    layer.eval()
    inferred = layer(torch.from_numpy(given.xs[0])).detach().numpy()
    return layer, list(zip(*steps, strict=True)), inferred


@pytest.mark.parametrize("averaging", ["ema", "cumulative"])
@pytest.mark.parametrize("name", LAYERS)
def test_training_statistics_and_inference(name, averaging):
    """torch's momentum is the fraction taken; None is the cumulative average."""
    kind, shape = LAYERS[name]
    given = ours.data(shape, 5)
    momentum = 1 - ours.DECAY if averaging == "ema" else None
    layer, training, inferred = torch_run(kind, given, momentum)
    run = ours.run(given, axis=1, averaging=averaging, running_var="unbiased")
    ours.assert_same_training(run, *training)
    ours.assert_same(run.stats["mean"], layer.running_mean, "running_mean")
    ours.assert_same(run.stats["var"], layer.running_var, "running_var")
    ours.assert_same(run.inferred, inferred, "inference")
    if averaging == "cumulative":
        assert set(run.stats["count"].tolist()) == {int(layer.num_batches_tracked)}


def test_both_refuse_a_batch_of_one():
    """And torch, too, takes one example with several positions."""
    layer = torch.nn.BatchNorm1d(5, dtype=torch.float64)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(torch.zeros(1, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="one value per feature"):
        ours.run(ours.data((1, 5), 5))
    layer(torch.zeros(1, 5, 2, dtype=torch.float64))
    ours.run(ours.data((1, 5, 2), 5), axis=1)
