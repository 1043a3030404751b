"""Summaries: counts by hand, what is listed, and the command."""

import importlib

import flax.linen as nn
import jax
import pytest

from bnjax.linen import BatchNorm
from bnjax.models import MLP, BNInception
from bnjax.models.__main__ import main
from bnjax.models.summary import Layer, summarize


class Small(nn.Module):
    """A convolution by groups with a stride, a head on the side, a shared layer used twice."""

    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = nn.remat(nn.Conv) if self.remat else nn.Conv
        x = conv(6, (3, 2), 2, padding="SAME", feature_group_count=3, name="conv")(x)
        if self.is_initializing():
            nn.Dense(7, name="auxiliary_a")(x.reshape(len(x), -1))
        x = BatchNorm(use_running_average=not train, name="norm")(x)
        shared = nn.Dense(6, use_bias=False, name="shared")
        x = shared(shared(x))
        return nn.Dense(4, name="logits")(x.mean((1, 2)))


@pytest.mark.parametrize("remat", [False, True])
def test_counts_by_hand(remat):
    """Red if groups, strides, repeated use or rematerialization are miscounted."""
    summary = summarize(Small(remat), (8, 5, 3))
    assert summary.layers == [
        Layer("conv", (4, 3, 6), 3 * 2 * 1 * 6 + 6, 0, 4 * 3 * 36),
        Layer("auxiliary_a", (7,), 72 * 7 + 7, 0, 72 * 7),
        Layer("norm", (4, 3, 6), 12, 12, 0),
        Layer("shared", (4, 3, 6), 36, 0, 2 * 12 * 36),
        Layer("logits", (4,), 28, 0, 24),
    ]
    assert summary.network == Layer("network", (4,), 42 + 12 + 36 + 28, 12, 432 + 864 + 24)
    assert summary.auxiliary == Layer("side heads", (), 511, 0, 504)


@pytest.mark.slow
def test_depth_splits_and_keeps_the_sum():
    model = BNInception(10, norm=BatchNorm, width=0.25, stem_stride=1)
    summaries = [summarize(model, (32, 32, 3), depth=depth) for depth in (1, 2, 3)]
    assert [len(summary.layers) for summary in summaries] == [
        3 + 10 + 2,
        3 * 2 + (8 * 7 + 2 * 5) + 2,
        3 * 2 + (8 * 7 + 2 * 5) * 2 + 2,
    ]
    for summary in summaries:
        for field in ("parameters", "statistics", "multiply_adds"):
            total = sum(getattr(layer, field) for layer in summary.layers)
            assert total == getattr(summary.network, field)
    assert summaries[1].layers[6].name == "inception_3a/conv1x1"
    assert summaries[2].layers[6].name == "inception_3a/conv1x1/conv"


def test_nothing_is_computed():
    """A dense layer of 2^42 weights; red if an array of that size is asked for."""
    summary = summarize(MLP(hidden=(2**21,) * 2), (4, 4, 1))
    assert summary.layers[2].multiply_adds == 2**42


def test_depth_below_one_is_refused():
    with pytest.raises(ValueError, match="depth must be 1 or more, got 0"):
        summarize(MLP(), (4, 4, 1), depth=0)


def test_command_prints_a_table(capsys):
    main(["mlp"])
    assert capsys.readouterr().out.splitlines() == [
        "mlp: MLP on 28x28x1",
        "layer    output  parameters  statistics  multiply-adds",
        "------------------------------------------------------",
        "dense1   100         78,400           0         78,400",
        "hidden1  100            200         200              0",
        "dense2   100         10,000           0         10,000",
        "hidden2  100            200         200              0",
        "dense3   100         10,000           0         10,000",
        "hidden3  100            200         200              0",
        "logits   10           1,010           0          1,000",
        "------------------------------------------------------",
        "network  10         100,010         600         99,400",
        "",
    ]


@pytest.mark.slow
def test_command_prints_every_network_by_default(capsys, monkeypatch):
    models = importlib.import_module("bnjax.models.__main__")
    few = {name: models.NETWORKS[name] for name in ("lenet5", "googlenet", "inception_v3")}
    monkeypatch.setattr(models, "NETWORKS", few)
    models.main([])
    text = capsys.readouterr().out
    for count in ("61,932", "6,998,552", "6,379,728", "23,834,568", "5,713,216,096"):
        assert count in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vgg"], "there is no network 'vgg': choose from mlp"),
        (["mlp", "--depth", "0"], "--depth must be 1 or more, got 0"),
        (["mlp", "--width", "2"], "unrecognized arguments"),
    ],
)
def test_command_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_images_without_a_batch_are_what_a_summary_takes():
    with pytest.raises(ValueError, match=r"\[n, h, w, 3\]"):
        summarize(BNInception(), (1, 224, 224, 3))
