"""Variables to a safetensors file and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from bnjax.linen import BatchNorm
from bnjax.models import MLP, load_safetensors, save_safetensors


def bits(tree):
    return jax.tree.map(lambda x: (x.dtype.name, x.shape, np.asarray(x).tobytes()), tree)


def test_a_model_comes_back_bitwise(tmp_path):
    model = MLP(hidden=(4,), norm=BatchNorm)
    variables = model.init(jax.random.key(0), jnp.ones((2, 3)), train=False)
    save_safetensors(variables, tmp_path / "a.safetensors", metadata={"epoch": "3"})
    saved = load_safetensors(tmp_path / "a.safetensors")
    assert bits(saved.variables) == bits(variables)
    assert saved.metadata == {"epoch": "3"}
    x = jax.random.normal(jax.random.key(1), (2, 3))
    y, z = (model.apply(v, x, train=False) for v in (variables, saved.variables))
    assert jnp.array_equal(y, z)
    with safe_open(tmp_path / "a.safetensors", "np") as file:  # the documented names and layouts
        assert set(file.keys()) == {
            "params/dense1/kernel",
            "params/hidden1/norm/scale",
            "params/hidden1/norm/bias",
            "params/logits/kernel",
            "params/logits/bias",
            "batch_stats/hidden1/norm/mean",
            "batch_stats/hidden1/norm/var",
        }
        assert file.get_tensor("params/dense1/kernel").shape == (3, 4)


def test_other_dtypes_come_back_bitwise(tmp_path):
    """Also NaN with its bits, minus zero, no values at all, scalars and transposed arrays."""
    variables = {
        "a": {
            "bfloat16": jnp.array([1.5, -0.0, jnp.nan], jnp.bfloat16),
            "float16": np.array([[6e-8, 65504]], np.float16),
            "float8_e4m3fn": jnp.array([1.5, -0.0, jnp.nan], jnp.float8_e4m3fn),
            "float8_e5m2": jnp.array([1.5, jnp.inf], jnp.float8_e5m2),
            "nan": np.array([0x7FC0BEEF], np.uint32).view(np.float32),
            "transposed": np.arange(6.0).reshape(2, 3).T,
        },
        "scalar": np.float32(3),
        "empty": np.zeros((0, 3), np.float32),
        "count": jnp.array(5, jnp.int32),
        "flag": np.array([True, False]),
    }
    save_safetensors(variables, tmp_path / "a.safetensors")
    saved = load_safetensors(tmp_path / "a.safetensors")
    assert bits(saved.variables) == bits(variables)
    assert saved.metadata == {}


BAD = {
    "slash": ({"a/b": np.ones(2)}, r"without a slash, got the path \['a/b'\]"),
    "list": ({"a": [np.ones(2)]}, r"nested dictionaries .* got the path \['a'\]\[0\]"),
    "number": ({"a": 3.0}, r"variables\['a'\] must be an array, got <class 'float'>"),
    "key": ({"a": jax.random.key(0)}, r"variables\['a'\] is of dtype key<fry>"),
    "empty": ({"a": {}}, "holds no array"),
    "float8": (
        {"a": jnp.ones(2, jnp.float8_e4m3b11fnuz)},
        r"\['a'\] is of dtype float8_e4m3b11fnuz",
    ),
    "int4": ({"a": jnp.ones(2, jnp.int4)}, r"variables\['a'\] is of dtype int4, which safetensors"),
    "complex": ({"a": np.ones(2, complex)}, r"variables\['a'\] is of dtype complex128"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_variables_are_refused(name, tmp_path):
    variables, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        save_safetensors(variables, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_bad_paths_and_metadata_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.safetensors, got .*a\.npz"):
        save_safetensors({"a": np.ones(2)}, tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"metadata must be text by name, got 'epoch': 3"):
        save_safetensors({"a": np.ones(2)}, tmp_path / "a.safetensors", metadata={"epoch": 3})
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_safetensors(tmp_path / "a.safetensors")


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_safetensors({"a": np.ones(200)}, path)
    whole = path.read_bytes()
    for part in (b"", whole[:30], whole[:-1], b"PK\x03\x04" + whole):
        path.write_bytes(part)
        with pytest.raises(ValueError, match="damaged, truncated, or not of safetensors"):
            load_safetensors(path)


def test_an_array_inside_an_array_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.ones(2), "a/b": np.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="and another inside it"):
        load_safetensors(tmp_path / "a.safetensors")


def test_a_file_that_cannot_be_written_is_an_ordinary_error(tmp_path):
    """safetensors raises an error of its own, which says in its text alone what happened."""
    path = tmp_path / "none" / "weights.safetensors"
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: .*none"):
        save_safetensors({"w": np.ones(3, np.float32)}, path)
