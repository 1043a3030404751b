"""keras.applications.InceptionV3 on JAX: random weights through both of its file formats."""

import os

os.environ["KERAS_BACKEND"] = "jax"  # read when keras is imported

from functools import partial

import agreement
import h5py
import jax
import keras
import numpy as np
import pytest

from bnjax.linen import BatchNorm
from bnjax.models import InceptionV3, load_pretrained

pytestmark = [
    pytest.mark.parity,  # Keras's variables have NumPy 1's `__array__`, and it saves through that
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
    ),
]

CLASSES, SIZE = 7, 107
MODEL = InceptionV3(
    CLASSES,
    norm=partial(BatchNorm, momentum=0.99, epsilon=1e-3, use_scale=False),
    auxiliary="none",
    dropout=0.0,
)
STEM = ("conv_1a", "conv_2a", "conv_2b", "conv_3b", "conv_4a")
MIXED = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")


@pytest.fixture(scope="module")
def network():
    """With weights of our own; Keras's drawing takes half a minute, for JAX compiles each shape."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("GlorotUniform", "Zeros", "Ones"):
            zeros = lambda self, shape, dtype=None: np.zeros(shape, np.float32)  # noqa: E731
            patch.setattr(getattr(keras.initializers, kind), "__call__", zeros)
        network = keras.applications.InceptionV3(
            weights=None, input_shape=(SIZE, SIZE, 3), classes=CLASSES, classifier_activation=None
        )
    assert network.count_params() == 23_851_784 - (1000 - CLASSES) * 2049
    rng = np.random.default_rng(0)
    for variable in network.weights:
        shape, kind = variable.shape, variable.name
        if kind == "kernel":
            value = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
        elif kind == "moving_variance":
            value = rng.uniform(0.5, 1.5, shape)
        else:  # most ReLUs open, see torch_inception.draw
            value = rng.normal(size=shape) * 0.3 + (1.0 if kind == "beta" else 0.0)
        variable.assign(value.astype(np.float32))
    return network


def keras_run(network, x, *, train):
    """Outputs by our names; in training its statistics move."""
    relus = [layer for layer in network.layers if isinstance(layer, keras.layers.Activation)]
    tensors = dict(zip(STEM, (layer.output for layer in relus), strict=False))
    for i, name in enumerate(MIXED):
        tensors[f"mixed_{name}"] = network.get_layer(f"mixed{i}").output
    tensors["logits"] = network.output
    inner = keras.Model(network.inputs, list(tensors.values()))
    values = [
        [v.value for v in vs] for vs in (inner.trainable_variables, inner.non_trainable_variables)
    ]
    call = jax.jit(
        partial(inner.stateless_call, training=train),
        compiler_options=agreement.FAST_COMPILATION,
    )
    with jax.numpy_rank_promotion("allow"):  # Keras's dense layer
        outputs, moved = call(*values, x)
    for variable, value in zip(inner.non_trainable_variables, moved, strict=True):
        variable.assign(value)
    return dict(zip(tensors, map(np.asarray, outputs), strict=True))


FILES = {  # what writes each
    "weights.weights.h5": lambda network, path: network.save_weights(path),
    "model.h5": lambda network, path: network.save(path),
}


@pytest.mark.parametrize(("file", "train"), [("weights.weights.h5", False), ("model.h5", True)])
def test_blocks_and_statistics_agree(network, file, train, tmp_path):
    """The statistics of Keras after its step are read by the importer again."""
    FILES[file](network, tmp_path / file)
    loaded = load_pretrained(MODEL, tmp_path / file, source="keras")
    x = np.random.default_rng(1).normal(size=(4, SIZE, SIZE, 3)).astype(np.float32)
    ours = agreement.run(MODEL, loaded.variables, x, train=train)
    blocks = keras_run(network, x, train=train)
    FILES[file](network, tmp_path / file)
    after = load_pretrained(MODEL, tmp_path / file, source="keras").variables["batch_stats"]
    agreement.assert_agree(ours, agreement.Run(blocks, agreement.flat(after)))


def test_missing_scales_are_ones(network, tmp_path):
    """For a model whose normalization has them."""
    network.save_weights(tmp_path / "a.weights.h5")
    model = MODEL.clone(norm=partial(BatchNorm, epsilon=1e-3))
    loaded = load_pretrained(model, tmp_path / "a.weights.h5", source="keras")
    assert (loaded.variables["params"]["mixed_7c"]["conv1x1"]["norm"]["scale"] == 1).all()
    assert any("94 scales are new" in note for note in loaded.notes)


def small_file(path, build):
    with h5py.File(path, "w") as file:
        build(file)
    return path


def test_bad_files_are_refused(tmp_path):
    another = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    another.save_weights(tmp_path / "another.weights.h5")
    with pytest.raises(ValueError, match=r"376 of 378 arrays are missing, 0 are left over"):
        load_pretrained(MODEL, tmp_path / "another.weights.h5", source="keras")

    whole = (tmp_path / "another.weights.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.h5").write_bytes(b"no HDF5" * 100)
    for name in ("cut.h5", "text.h5"):
        with pytest.raises(ValueError, match="not a readable HDF5 file"):
            load_pretrained(MODEL, tmp_path / name, source="keras")

    path = small_file(tmp_path / "data.h5", lambda file: file.create_dataset("x", data=[1.0]))
    with pytest.raises(ValueError, match="not of weights that Keras saved"):
        load_pretrained(MODEL, path, source="keras")

    def unknown(file):
        file.create_dataset("layers/gru/vars/0", data=[1.0])

    with pytest.raises(ValueError, match="layer 'gru' with 1 weights"):
        load_pretrained(MODEL, small_file(tmp_path / "gru.h5", unknown), source="keras")
