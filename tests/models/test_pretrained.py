"""Public weights: where each array lands, and which names, values and settings are refused.

That networks compute the same with them is in tests/parity/test_inception_torch.py and _keras.py.
"""

import sys
from dataclasses import fields
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import made_weights
import numpy as np
import pytest
from made_weights import CLASSES, MODEL
from safetensors.numpy import save_file

from bnjax.linen import BatchNorm
from bnjax.models import BNInception, GoogLeNet, InceptionV3, load_pretrained, norm_by_name
from bnjax.models.pretrained.sources import SOURCES


@pytest.fixture(scope="module")
def state():
    """Not to be changed."""
    return made_weights.googlenet(CLASSES)


def load(tmp_path, state, model=MODEL, **options):
    """By the fastest format."""
    save_file(state, tmp_path / "a.safetensors")
    options = {"source": "torchvision"} | options
    return load_pretrained(model, tmp_path / "a.safetensors", **options)


def structure(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), tree)


@cache
def needed(model, size=224):
    images = jnp.zeros((1, size, size, 3))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


def test_every_array_lands_in_its_place(tmp_path):
    """Kernels become [h, w, in, out], and rows of what torch flattens channels first move."""
    state = made_weights.googlenet(CLASSES, heads=True)
    model = MODEL.clone(auxiliary=True)
    loaded = load(tmp_path, state, model)
    assert structure(loaded.variables) == structure(needed(model))
    params, stats = loaded.variables["params"], loaded.variables["batch_stats"]

    module = params["inception_4c"]["conv5x5"]
    kernel = module["conv"]["kernel"]
    assert kernel.shape == (3, 3, 24, 64)
    assert kernel[0, 2, 5, 11] == state["inception4c.branch3.1.conv.weight"][11, 5, 0, 2]
    norm = "inception4c.branch3.1.bn"
    np.testing.assert_array_equal(module["norm"]["scale"], state[f"{norm}.weight"])
    np.testing.assert_array_equal(module["norm"]["bias"], state[f"{norm}.bias"])
    statistics = stats["inception_4c"]["conv5x5"]["norm"]
    np.testing.assert_array_equal(statistics["mean"], state[f"{norm}.running_mean"])
    np.testing.assert_array_equal(statistics["var"], state[f"{norm}.running_var"])

    np.testing.assert_array_equal(params["logits"]["kernel"].T, state["fc.weight"])
    np.testing.assert_array_equal(params["logits"]["bias"], state["fc.bias"])
    hidden = params["auxiliary_4d"]["hidden"]["dense"]["kernel"]
    row, column, channel = 2, 1, 77
    np.testing.assert_array_equal(
        hidden[(row * 4 + column) * 128 + channel],
        state["aux2.fc1.weight"][:, channel * 16 + row * 4 + column],
    )
    np.testing.assert_array_equal(
        params["auxiliary_4a"]["logits"]["kernel"].T, state["aux1.fc2.weight"]
    )


def test_side_heads_are_left_out_of_a_model_without_them(tmp_path):
    state = made_weights.googlenet(CLASSES, heads=True)
    loaded = load(tmp_path, state)
    assert structure(loaded.variables) == structure(needed(MODEL))
    assert any("left out: 18 arrays, aux1.conv.conv.weight to aux2" in n for n in loaded.notes)


def test_a_model_with_side_heads_needs_them(tmp_path, state):
    with pytest.raises(ValueError, match=r"missing: aux1\.fc1\.weight(.|\n)*no side heads"):
        load(tmp_path, state, MODEL.clone(auxiliary=True))


def test_older_files_have_no_count_of_batches(tmp_path, state):
    old = {name: value for name, value in state.items() if "tracked" not in name}
    assert structure(load(tmp_path, old).variables) == structure(needed(MODEL))


def test_all_missing_and_all_left_over_names_are_listed(tmp_path, state):
    renamed = {name.replace("conv2.bn", "module.conv2.bn"): v for name, v in state.items()}
    with pytest.raises(ValueError, match=r"4 of \d+ arrays are missing, 5 are left over") as error:
        load(tmp_path, renamed)
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert f"missing: conv2.bn.{name}\n" in f"{error.value}\n"
        assert f"left over: module.conv2.bn.{name}, of shape (64,)" in str(error.value)
    assert "left over: module.conv2.bn.num_batches_tracked" in str(error.value)


def test_all_shapes_that_differ_are_listed(tmp_path, state):
    """The published networks have 3x3 kernels there; and a vector where a matrix should be."""
    name, other = "inception3a.branch3.1.conv.weight", "fc.weight"
    wrong = state | {name: np.ones((32, 16, 5, 5), np.float32), other: np.ones(5, np.float32)}
    with pytest.raises(ValueError, match="2 arrays with wrong shapes") as error:
        load(tmp_path, wrong)
    at = "params/inception_3a/conv5x5/conv/kernel is (3, 3, 16, 32)"
    assert f"{name} is (32, 16, 5, 5); {at}" in str(error.value)
    assert f"{other} is (5,); params/logits/kernel is (1024, 3)" in str(error.value)


BAD_VALUES = {
    "conv3.bn.bias": (np.nan, r"conv3\.bn\.bias has 1 that are not finite"),
    "conv3.conv.weight": (np.inf, r"conv3\.conv\.weight has 1 that are not finite"),
    "conv3.bn.running_var": (-1.0, r"conv3\.bn\.running_var has a negative variance"),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_bad_values_are_refused(tmp_path, state, name):
    value, message = BAD_VALUES[name]
    array = state[name].copy()
    array.flat[-1] = value
    with pytest.raises(ValueError, match=message):
        load(tmp_path, state | {name: array})


def test_integers_are_refused(tmp_path, state):
    with pytest.raises(ValueError, match=r"fc\.bias is of dtype int64"):
        load(tmp_path, state | {"fc.bias": np.zeros(CLASSES, np.int64)})


def test_narrow_arrays_are_cast_and_it_is_said(tmp_path, state):
    half = {name: value.astype(np.float16) for name, value in state.items() if value.ndim}
    loaded = load(tmp_path, half)
    assert structure(loaded.variables) == structure(needed(MODEL))
    assert "cast: float16 to float32." in loaded.notes


@pytest.mark.slow
def test_another_number_of_classes(tmp_path, state):
    """One more, as of TensorFlow: refused, unless the first is to be left out."""
    more = state | made_weights.googlenet(CLASSES + 1)
    with pytest.raises(ValueError, match="4 classes, the model has classes=3"):
        load(tmp_path, more)
    loaded = load(tmp_path, more, class_offset=1)
    logits = loaded.variables["params"]["logits"]
    np.testing.assert_array_equal(logits["kernel"].T, more["fc.weight"][1:])
    np.testing.assert_array_equal(logits["bias"], more["fc.bias"][1:])
    assert any("the first 1 of" in note for note in loaded.notes)
    with pytest.raises(ValueError, match="class_offset=2"):
        load(tmp_path, more, class_offset=2)
    with pytest.raises(ValueError, match="class_offset must be 0 or more"):
        load(tmp_path, more, class_offset=-1)


@pytest.mark.slow
def test_a_new_classifier(tmp_path, state):
    """Of the model's classes, from the key; the rest as it was. The file may lack one."""
    model = MODEL.clone(classes=5)
    key = jax.random.key(3)
    loaded = load(tmp_path, state, model, new_classifier=key)
    assert structure(loaded.variables) == structure(needed(model))
    kernel = loaded.variables["params"]["logits"]["kernel"]
    assert 0.9 / 1024 < float(kernel.var()) < 1.1 / 1024
    assert any("new: params/logits/kernel" in note for note in loaded.notes)

    headless = {name: value for name, value in state.items() if not name.startswith("fc")}
    again = load(tmp_path, headless, model, new_classifier=key)
    jax.tree.map(np.testing.assert_array_equal, again.variables, loaded.variables)
    other = load(tmp_path, headless, model, new_classifier=jax.random.key(4))
    assert (other.variables["params"]["logits"]["kernel"] != kernel).any()
    with pytest.raises(ValueError, match="give a key as `new_classifier`"):
        load(tmp_path, headless)
    with pytest.raises(ValueError, match="0 with new_classifier"):
        load(tmp_path, state, new_classifier=key, class_offset=1)


@pytest.mark.slow
def test_all_settings_that_differ_are_listed(tmp_path, state):
    model = MODEL.clone(
        norm=partial(BatchNorm, use_scale=False), variant="paper", width=0.5, activation=nn.sigmoid
    )
    with pytest.raises(ValueError, match="the model does not fit torchvision's weights") as error:
        load(tmp_path, state, model)
    for line in (
        "variant='paper', needed: 'torchvision'",
        "width=0.5, needed: 1.0",
        "activation=sigmoid, needed: relu",
        "epsilon=1e-05 at conv1/norm, needed: 0.001",
        "use_scale=False at conv1/norm, needed: True",
    ):
        assert line in str(error.value)
    with pytest.raises(ValueError, match=r"norm=None, needed: partial\(BatchNorm, epsilon=0.001"):
        load(tmp_path, state, MODEL.clone(norm=None))
    with pytest.raises(ValueError, match="averaging='cumulative'"):
        load(tmp_path, state, MODEL.clone(norm=partial(MODEL.norm, averaging="cumulative")))


def test_a_source_says_of_each_setting_what_it_needs():
    """Or the setting changes no value of the trained network; red for a new one that does."""
    free = {"classes", "dropout", "axis_name", "kernel_init", "remat", "dtype", "param_dtype"}
    free |= {"parent", "name", "norm", "auxiliary", "auxiliary_dropout"}  # held otherwise, or heads
    for source in SOURCES:
        averages = set() if source.network is not GoogLeNet else {"count_include_pad"}  # has none
        names = {field.name for field in fields(source.network)}
        assert names - source.settings.keys() <= free | averages, source.name


@pytest.mark.slow
def test_another_normalization_is_refused(tmp_path, state):
    """Red without the check: it has no place for the file's statistics."""
    model = MODEL.clone(norm=norm_by_name("group:8", epsilon=1e-3))
    with pytest.raises(ValueError, match="kind=GroupNorm at conv1/norm, needed: BatchNorm"):
        load(tmp_path, state, model)
    flax = load(tmp_path, state, MODEL.clone(norm=partial(nn.BatchNorm, epsilon=1e-3)))
    assert structure(flax.variables) == structure(needed(MODEL))


def test_unknown_sources_are_refused(tmp_path, state):
    with pytest.raises(ValueError, match="no weights of source='keras' for GoogLeNet: choose from"):
        load(tmp_path, state, source="keras")
    with pytest.raises(ValueError, match="no weights of source='torchvision' for BNInception"):
        load(tmp_path, state, BNInception())


@pytest.mark.slow
def test_convolution_biases_of_bn_inception_move_into_the_means(tmp_path):
    """Names of pretrainedmodels' bninception, from its layer list; 11,295,240 parameters."""
    model = BNInception(CLASSES, norm=BatchNorm, count_include_pad=True)
    variables = jax.tree.map(
        lambda leaf: np.ones(leaf.shape, np.float32), needed(model), is_leaf=lambda x: False
    )
    state = {}
    renamed = {"conv1": "conv1_7x7_s2", "conv2_reduce": "conv2_3x3_reduce", "conv2": "conv2_3x3"}
    parts = {"conv1x1": "1x1", "conv3x3_reduce": "3x3_reduce", "conv3x3": "3x3"}
    parts |= {"double3x3_reduce": "double_3x3_reduce", "pool_project": "pool_proj"}
    parts |= {"double3x3_a": "double_3x3_1", "double3x3_b": "double_3x3_2"}
    for top, below in variables["params"].items():
        blocks = {"": below} if "conv" in below else below
        for part, block in blocks.items() if top != "logits" else ():
            at = renamed[top] if not part else f"{top}_{parts[part]}"
            state[f"{at}.weight"] = block["conv"]["kernel"].transpose(3, 2, 0, 1).copy()
            features = len(state[f"{at}.weight"])
            state[f"{at}.bias"] = np.arange(features, dtype=np.float32)
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                state[f"{at}_bn.{leaf}"] = np.full(features, 2, np.float32)
    state["last_linear.weight"] = np.ones((CLASSES, 1024), np.float32)
    state["last_linear.bias"] = np.ones(CLASSES, np.float32)
    trained = sum(value.size for name, value in state.items() if "running" not in name)
    assert trained == 11_295_240 - (1000 - CLASSES) * 1025

    loaded = load(tmp_path, state, model, source="pretrainedmodels")
    assert structure(loaded.variables) == structure(needed(model))
    stats = loaded.variables["batch_stats"]["inception_5b"]["pool_project"]["norm"]
    np.testing.assert_array_equal(stats["mean"], 2 - np.arange(128))
    np.testing.assert_array_equal(stats["var"], np.full(128, 2))
    assert any("69 convolution biases" in note for note in loaded.notes)


def test_notes_say_how_training_goes_on():
    """The networks' own dropout is that of papers: 0.2 for Inception-v3, 0.4 for GoogLeNet."""
    rates = {
        ("keras", InceptionV3): 0.0,
        ("torchvision", InceptionV3): 0.5,
        ("timm", InceptionV3): 0.0,
        ("torchvision", GoogLeNet): 0.2,
    }
    for source in SOURCES:
        rate = rates.get((source.name, source.network))
        said = [f"dropout with dropout={rate}." in note for note in source.notes]
        assert sum(said) == (rate is not None)


def test_images_are_normalized_as_the_source_does(tmp_path, state):
    """torchvision's two steps make one: ImageNet's mean and deviation, then its transform_input."""
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (images / 255 - mean) / deviation * (deviation / 0.5) + (mean - 0.5) / 0.5
    preprocessing = load(tmp_path, state).preprocessing
    x = preprocessing.normalize(images)
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, expected, atol=1e-6)
    assert (preprocessing.size, preprocessing.resize) == (224, 256)
    caffe = preprocessing._replace(
        mean=(104.0, 117.0, 128.0), scale=(1.0, 1.0, 1.0), channels="BGR"
    )
    np.testing.assert_array_equal(caffe.normalize(images)[..., 0], images[..., 2] - 104.0)
    np.testing.assert_array_equal(caffe.normalize(images)[..., 2], images[..., 0] - 128.0)
    with pytest.raises(ValueError, match=r"must have shape \[\.\.\., 3\]"):
        preprocessing.normalize(images[..., :1])


def test_keras_files_need_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.weights.h5").write_bytes(b"")
    model = InceptionV3(norm=MODEL.norm, auxiliary="none")
    with pytest.raises(ImportError, match=r"needs h5py: pip install -c .* -e '\.\[pretrained\]'"):
        load_pretrained(model, tmp_path / "a.weights.h5", source="keras")
