"""Random weights of torch networks go through the importers; then every block must agree."""

from functools import partial

import agreement
import numpy as np
import pytest
import torch
import torch_inception
from made_weights import MODULES
from safetensors.torch import save_file

from bnjax.linen import BatchNorm
from bnjax.models import BNInception, GoogLeNet, InceptionV3, load_pretrained

pytestmark = pytest.mark.parity

CLASSES = 7
NORM = partial(BatchNorm, momentum=0.9, running_var="unbiased")  # as torch's
V1 = {"conv1": "conv1", "conv2_reduce": "conv2", "conv2": "conv3", "logits": "fc"}
V3 = {
    "conv_1a": "Conv2d_1a_3x3",
    "conv_2a": "Conv2d_2a_3x3",
    "conv_2b": "Conv2d_2b_3x3",
    "conv_3b": "Conv2d_3b_1x1",
    "conv_4a": "Conv2d_4a_3x3",
    "logits": "fc",
}
MIXED = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
CAFFE = {
    "conv1": "seen.conv1_7x7_s2",
    "conv2_reduce": "seen.conv2_3x3_reduce",
    "conv2": "seen.conv2_3x3",
    "logits": "last_linear",
}

NETWORKS = {  # theirs, ours, our blocks in theirs, the source
    "inception_v3": (
        lambda: torch_inception.InceptionV3(CLASSES, auxiliary=True),
        InceptionV3(CLASSES, norm=partial(NORM, epsilon=1e-3), count_include_pad=True, dropout=0.0),
        V3 | {f"mixed_{name}": f"Mixed_{name}" for name in MIXED},
        {"auxiliary": "AuxLogits"},
        "torchvision",
    ),
    "googlenet": (
        lambda: torch_inception.GoogLeNet(CLASSES),
        GoogLeNet(
            CLASSES,
            norm=partial(NORM, epsilon=1e-3),
            variant="torchvision",
            local_response_norm=False,
            dropout=0.0,
            auxiliary_dropout=0.0,
        ),
        V1 | {f"inception_{name}": f"inception{name}" for name in MODULES},
        {"auxiliary_4a": "aux1", "auxiliary_4d": "aux2"},
        "torchvision",
    ),
    "bn_inception": (
        lambda: torch_inception.BNInception(CLASSES),
        BNInception(CLASSES, norm=NORM, count_include_pad=True),
        CAFFE | {f"inception_{name}": f"seen.{name}" for name in torch_inception.BN_INCEPTION},
        {},
        "pretrainedmodels",
    ),
}
WRITERS = {  # in every format; the second one is that of torch before 1.6
    "new.pth": torch.save,
    "old.pth": partial(torch.save, _use_new_zipfile_serialization=False),
    "new.safetensors": save_file,
}
CASES = {  # network, images, their size, training, file
    "v3, eval": ("inception_v3", 2, 107, False, "new.safetensors"),
    "v3, train": ("inception_v3", 4, 299, True, "new.pth"),  # the side head has 5x5 kernels
    "googlenet, eval at odd sizes": ("googlenet", 3, 85, False, "old.pth"),  # 43, 21, 10, 5, 3
    "googlenet, train": ("googlenet", 6, 96, True, "new.pth"),  # 48, 24, 12, 6, 3
    "bn-inception, eval": ("bn_inception", 2, 96, False, "old.pth"),
    "bn-inception, train": ("bn_inception", 8, 64, True, "new.pth"),
}


def torch_blocks(network, names, x):
    """Outputs of its modules, channels last, by our names."""
    blocks, handles = {}, []
    for ours, theirs in names.items():
        keep = partial(lambda name, *call: blocks.update({name: call[-1]}), ours)
        handles.append(network.get_submodule(theirs).register_forward_hook(keep))
    with torch.no_grad():
        network(torch.from_numpy(x).permute(0, 3, 1, 2).contiguous())
    for handle in handles:
        handle.remove()
    return {
        name: (y.permute(0, 2, 3, 1) if y.ndim == 4 else y).numpy() for name, y in blocks.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_blocks_and_statistics_agree(case, tmp_path):
    """The network's statistics after its step are read by the importer again."""
    name, n, size, train, file = CASES[case]
    make, model, names, heads, source = NETWORKS[name]
    names = names | heads if train else names
    network = torch_inception.draw(make(), seed=0).train(train)
    path = tmp_path / file
    WRITERS[file](network.state_dict(), path)
    loaded = load_pretrained(model, path, source=source)
    x = np.random.default_rng(1).normal(size=(n, size, size, 3)).astype(np.float32)
    ours = agreement.run(model, loaded.variables, x, train=train)

    blocks = torch_blocks(network, names, x)
    WRITERS[file](network.state_dict(), path)
    after = load_pretrained(model, path, source=source).variables["batch_stats"]
    agreement.assert_agree(ours, agreement.Run(blocks, agreement.flat(after)))


def test_timm_calls_its_layers_as_torchvision_does(tmp_path):
    """Here without the side head, as timm saves them; the model has none either."""
    network = torch_inception.draw(torch_inception.InceptionV3(CLASSES, auxiliary=False), seed=0)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    _, model, *_ = NETWORKS["inception_v3"]
    model = model.clone(auxiliary="none")
    loaded = load_pretrained(model, tmp_path / "model.safetensors", source="timm")
    kernel = loaded.variables["params"]["mixed_7c"]["double3x3_b_3x1"]["conv"]["kernel"]
    expected = network.Mixed_7c.branch3x3dbl_3b.conv.weight.detach().permute(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)
    assert (loaded.preprocessing.resize, loaded.preprocessing.interpolation) == (341, "bicubic")


def test_the_first_block_that_disagrees_is_named():
    """Not the last, nor the worst; and neither a block nor a statistic may be left out."""
    blocks = {name: np.ones((2, 3), np.float32) for name in ("a", "b", "c")}
    run = agreement.Run(blocks, {"b/mean": np.ones(3)})
    assert agreement.assert_agree(run, run) == 0
    other = blocks | {"b": blocks["b"] + 2e-4, "c": blocks["c"] + 1}
    with pytest.raises(AssertionError, match=r"first block that disagrees is b, by 2\.0e-04"):
        agreement.assert_agree(run, run._replace(blocks=other))
    with pytest.raises(AssertionError, match=r"the statistic b/mean disagrees by 5\.0e-01"):
        agreement.assert_agree(run, run._replace(stats={"b/mean": np.full(3, 2.0)}))
    for left_out in (run._replace(stats={}), run._replace(blocks={"a": blocks["a"]})):
        with pytest.raises(AssertionError):
            agreement.assert_agree(run, left_out)
