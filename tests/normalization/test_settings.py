"""One value says how a layer normalizes: it is checked where it is made, and has all keywords."""

import dataclasses
import inspect
import types
import typing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
import bnjax.linen
from bnjax.normalization.renormalization import Limits, check_limits
from bnjax.normalization.settings import OwnFields, OwnKeywords, Settings, settings_of

DEFAULTS = {field.name: field.default for field in dataclasses.fields(Settings)}


def keywords(function) -> dict:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "mask"}


def test_the_keywords_of_the_layer_are_the_settings():
    """Names, order and defaults: a keyword that one of them lacks would be dropped in silence."""
    assert list(keywords(bnjax.normalize_batch).items()) == list(DEFAULTS.items())
    for part in (bnjax.batch_transform, bnjax.normalize_population, bnjax.update_stats):
        assert keywords(part).items() <= DEFAULTS.items()


def test_frameworks_have_the_keywords_that_flax_lacks():
    own = typing.get_type_hints(OwnFields)
    assert own == typing.get_type_hints(OwnKeywords)
    ours, layer = typing.get_type_hints(Settings), typing.get_type_hints(bnjax.linen.BatchNorm)
    shared = own.keys() - {"update_statistics"}
    assert {name: own[name] for name in shared} == {name: ours[name] for name in shared}
    renamed = {"decay": "momentum"}
    assert {renamed.get(name, name) for name in DEFAULTS} <= layer.keys()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("decay", 1.0, r"decay must be in \[0, 1\), got 1.0"),
        ("decay", "0.9", "decay must be a number, got '0.9'"),
        ("averaging", "mean", "averaging must be one of"),
        ("running_var", "sample", "running_var must be one of"),
        ("impl", "fast", "impl must be one of"),
        ("activation", "tanh", "activation must be one of"),
        ("batch", 0, "batch must be 'all', 'device' or examples per group, got 0"),
        ("batch", True, "batch must be 'all', 'device' or examples per group, got True"),
        ("batch", np.bool_(True), "batch must be 'all', 'device' or examples per group"),
        ("batch", np.int64(0), "batch must be 'all', 'device' or examples per group"),
        ("batch", 2.0, "batch must be 'all', 'device' or examples per group, got 2.0"),
        ("decay", np.bool_(False), "decay must be a number"),
        ("batch", "every", "batch must be 'all', 'device' or examples per group, got 'every'"),
        ("axis_name", 5, "axis_name must be a name or several, got 5"),
    ],
)
def test_refused_where_it_is_made(name, value, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{name: value})


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint32", "float16", "float64"])
def test_numbers_of_numpy_and_jax(x64, dtype):
    for make in (np.dtype(dtype).type, partial(jnp.asarray, dtype=dtype)):
        assert Settings(decay=make(0), batch=make(2) if "int" in dtype else 2).decay == 0
        check_limits(Limits(r_max=make(3), d_max=make(0)))


def test_a_wide_decay_where_jax_is_narrow():
    assert Settings(decay=np.int64(0)).decay == 0


def test_the_settings_of_a_layer():
    layer = types.SimpleNamespace(**DEFAULTS | {"momentum": 0.5, "epsilon": 1e-3, "axis": 1})
    del layer.decay
    settings = settings_of(layer, dtype=jnp.bfloat16, axis_name="data")
    assert (settings.decay, settings.epsilon, settings.axis) == (0.5, 1e-3, 1)
    assert (settings.dtype, settings.axis_name, settings.batch) == (jnp.bfloat16, "data", "all")
    with pytest.raises(ValueError, match="impl must be one of"):
        settings_of(layer, impl="fast")


def test_settings_are_checked_once_a_call(monkeypatch):
    """Tracing is what a call costs in Python."""
    made = []
    check = Settings.__post_init__
    monkeypatch.setattr(Settings, "__post_init__", lambda self: (made.append(self), check(self)))
    x, params, stats = jnp.ones((4, 3)), bnjax.init_params(3), bnjax.init_stats(3)
    jax.eval_shape(lambda x: bnjax.normalize_batch(x, params, stats), x)
    assert len(made) == 1
    layer = bnjax.linen.BatchNorm(use_running_average=False)
    variables = {"params": params, "batch_stats": stats}
    jax.eval_shape(lambda x: layer.apply(variables, x, mutable=["batch_stats"]), x)
    assert len(made) == 2
