"""Converted layers go on as in the source: recurrences in float64, Flax itself, notes, bad input.

The other sources themselves are in tests/parity.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from made_layers import (
    FEATURES,
    HAIKU,
    KEPT,
    UPDATES,
    flax_variables,
    haiku_layer,
    keras_weights,
    notes,
    some_batches,
    some_stats,
    torch_state,
    updated,
)
from tolerances import EXACT, PARALLEL, assert_close

import bnjax
import bnjax.linen
from bnjax.normalization import converters


def seen(running_var) -> dict[str, list[np.ndarray]]:
    batches = [reference.forward(x, None, None) for x in some_batches()]
    return {
        "mean": [batch.mean for batch in batches],
        "var": [reference.running_variance(batch, running_var) for batch in batches],
    }


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("source", ["torch", "keras", "flax"])
def test_an_average_goes_on(source):
    """Red for decay = momentum in torch, or the other estimate of the variance."""
    if source == "torch":
        state = torch_state(dtype=np.float64)
        layer = converters.from_torch(state, momentum=1 - KEPT)
    elif source == "keras":
        layer = converters.from_keras(keras_weights(), momentum=KEPT)
    else:
        layer = converters.from_flax(flax_variables(), momentum=KEPT)
    start = jax.tree.map(np.float64, layer.stats)
    assert set(start) == {"mean", "var"}
    new = updated(layer, some_batches())
    for key, values in seen("unbiased" if source == "torch" else "biased").items():
        expected = reference.ema(values, start[key], KEPT)
        tolerance = EXACT if source == "torch" else {"rtol": 1e-6, "atol": 1e-6}
        assert_close(new[key], expected, tolerance, key)


@pytest.mark.usefixtures("x64")
def test_a_cumulative_average_goes_on():
    """torch's momentum=None: the mean over old and new updates alike. Red if the count is lost."""
    state = torch_state(count=7, dtype=np.float64)
    layer = converters.from_torch(state, momentum=None)
    new = updated(layer, some_batches())
    for key, values in seen("unbiased").items():
        expected = np.average([layer.stats[key], *values], axis=0, weights=[7] + [1] * UPDATES)
        assert_close(new[key], expected, EXACT, key)
    assert new["count"].tolist() == [7 + UPDATES] * FEATURES


@pytest.mark.usefixtures("x64")
def test_a_debiased_average_goes_on():
    """Haiku's own recurrence of `hidden`. Red if hidden is taken for the average."""
    params, state = haiku_layer(dtype=np.float64)
    layer = converters.from_haiku(params, state, **HAIKU)
    new = updated(layer, some_batches())
    for key, values in seen("biased").items():
        hidden = state[f"{key}_ema"]["hidden"].ravel()
        for value in values:
            hidden = KEPT * hidden + (1 - KEPT) * value
        assert_close(new[key], hidden / (1 - KEPT ** (3 + UPDATES)), EXACT, key)


@pytest.mark.parametrize("shape", [(12, FEATURES), (4, 3, 2, FEATURES)])
@pytest.mark.parametrize(("use_scale", "use_bias"), [(True, True), (False, True), (False, False)])
def test_from_flax_itself(shape, use_scale, use_bias):
    """Trained there, converted, trained on: outputs, statistics, inference; in both adapters."""
    settings = {"momentum": KEPT, "epsilon": 1e-2, "use_scale": use_scale, "use_bias": use_bias}
    batches = [np.float32(x) for x in some_batches(shape, 6)]
    theirs = nn.BatchNorm(**settings, bias_init=nn.initializers.normal())
    train = jax.jit(lambda variables, x: theirs.apply(variables, x, False, mutable=["batch_stats"]))
    variables = dict(theirs.init(jax.random.key(1), batches[0], False))
    for x in batches[:3]:
        variables |= train(variables, x)[1]
    params, stats, ours, _ = converters.from_flax(variables, **settings)
    assert params.keys() == variables.get("params", {}).keys()

    linen = bnjax.linen.BatchNorm(
        momentum=ours["decay"],
        epsilon=ours["epsilon"],
        use_scale=use_scale,
        use_bias=use_bias,
        averaging=ours["averaging"],
        running_var=ours["running_var"],
    )
    module = {"params": params, "batch_stats": stats}
    for x in batches[3:]:
        expected, new = train(variables, x)
        variables |= new
        y, stats = bnjax.normalize_batch(x, params, stats, **ours)
        assert_close(y, expected, PARALLEL, "training")
        _, new = linen.apply(module, x, False, mutable=["batch_stats"])
        module |= new
    for found in (stats, module["batch_stats"]):
        assert_close(found["mean"], variables["batch_stats"]["mean"], PARALLEL, "mean")
        assert_close(found["var"], variables["batch_stats"]["var"], PARALLEL, "var")
    x = batches[0]
    y = bnjax.normalize_population(x, params, stats, epsilon=ours["epsilon"])
    assert_close(y, theirs.apply(variables, x, True), PARALLEL, "inference")


def test_from_flax_nnx():
    """The same names, in one object."""
    theirs = nnx.BatchNorm(FEATURES, rngs=nnx.Rngs(0))
    variables = {
        "params": {"scale": theirs.scale, "bias": theirs.bias},
        "batch_stats": {"mean": theirs.mean, "var": theirs.var},
    }
    layer = converters.from_flax(variables)
    assert layer.settings["decay"] == theirs.momentum
    assert layer.settings["epsilon"] == theirs.epsilon
    assert jax.tree.map(jnp.shape, layer.params) == {"scale": (FEATURES,), "bias": (FEATURES,)}


def test_settings_and_defaults():
    """The sources' own defaults, as they document them."""
    torch = converters.from_torch(torch_state())
    assert torch.settings == {
        "decay": 0.9,
        "epsilon": 1e-5,
        "averaging": "ema",
        "running_var": "unbiased",
    }
    keras = converters.from_keras(keras_weights())
    assert keras.settings == {
        "decay": 0.99,
        "epsilon": 1e-3,
        "averaging": "ema",
        "running_var": "biased",
    }
    flax = converters.from_flax(flax_variables())
    assert flax.settings == keras.settings | {"epsilon": 1e-5}
    haiku = converters.from_haiku(*haiku_layer(), **HAIKU)
    assert haiku.settings == {
        "decay": KEPT,
        "epsilon": 1e-5,
        "averaging": "ema_debiased",
        "running_var": "biased",
    }
    for layer in (torch, keras, flax):
        np.testing.assert_array_equal(layer.params["scale"], torch_state()["weight"])
        np.testing.assert_array_equal(layer.params["bias"], torch_state()["bias"])
        np.testing.assert_array_equal(layer.stats["mean"], torch_state()["running_mean"])
        np.testing.assert_array_equal(layer.stats["var"], torch_state()["running_var"])
    assert haiku.params["scale"].tolist() == [2.0] * FEATURES
    assert haiku.params["bias"].tolist() == [3.0] * FEATURES
    np.testing.assert_array_equal(haiku.stats["var"], some_stats(dtype=np.float32)["var"])
    assert haiku.stats["count"].tolist() == [3] * FEATURES


def test_keras_arrays_in_the_order_of_get_weights():
    by_name, weights = keras_weights(), list(keras_weights().values())
    for flags, kept in (({}, weights), ({"scale": False}, weights[1:])):
        named = dict(list(by_name.items())[-len(kept) :])
        expected = converters.from_keras(named, **flags)
        jax.tree.map(
            np.testing.assert_array_equal, converters.from_keras(kept, **flags)[:2], expected[:2]
        )
    with pytest.raises(ValueError, match=r"weights has 4 arrays, expected \['beta', 'moving_mean'"):
        converters.from_keras(weights, scale=False)


def test_notes_say_what_changes():
    told = notes(converters.from_torch(torch_state(), eps=1e-3))
    assert "decay=0.9 is 1 - momentum: torch's momentum=0.1" in told
    assert "running_var='unbiased'" in told
    assert "num_batches_tracked=7 is dropped" in told
    assert "epsilon=0.001" in told
    assert "if it was meant" not in told

    told = notes(converters.from_torch(torch_state(count=0), momentum=None))
    assert "averaging='cumulative'" in told
    assert "num_batches_tracked=0 is the count" in told
    assert "initial ones" in told

    told = notes(converters.from_haiku(*haiku_layer(), **HAIKU))
    assert "averaging='ema_debiased'" in told
    assert "counter=3" in told
    assert "`hidden` follows" in told
    for name, layer in (
        ("Keras", converters.from_keras(keras_weights())),
        ("Flax", converters.from_flax(flax_variables())),
    ):
        assert f"running_var='biased', as in {name}" in notes(layer)


def test_the_other_meaning_of_momentum_is_noted():
    """torch with 0.9, the others with 0.1: legal, and hardly ever meant."""
    layer = converters.from_torch(torch_state(), momentum=0.9)
    assert layer.settings["decay"] == pytest.approx(0.1)
    assert "momentum=0.9 forgets most of the past" in notes(layer)
    assert "torch's is 0.1" in notes(layer)
    layer = converters.from_keras(keras_weights(), momentum=0.1)
    assert layer.settings["decay"] == 0.1
    assert "momentum=0.1 forgets most of the past" in notes(layer)
    assert "the fraction kept is 0.9" in notes(layer)


def test_layers_without_scale_or_bias():
    state = torch_state()
    layer = converters.from_torch({k: v for k, v in state.items() if k != "bias"}, bias=False)
    assert set(layer.params) == {"scale"}
    assert "there is no bias" in notes(layer)
    bare = {k: v for k, v in state.items() if k not in ("weight", "bias")}
    layer = converters.from_torch(bare, affine=False)
    assert layer.params == {}
    assert "there is no scale" in notes(layer)


def test_narrow_types():
    """Parameters keep theirs; statistics go on in float32."""
    layer = converters.from_torch(torch_state(dtype=np.float16))
    assert layer.params["scale"].dtype == jnp.float16
    assert layer.stats["var"].dtype == jnp.float32
    assert "['running_mean (float16)', 'running_var (float16)']" in notes(layer)
    variables = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), flax_variables())
    layer = converters.from_flax(variables)
    assert layer.params["bias"].dtype == jnp.bfloat16
    assert layer.stats["mean"].dtype == jnp.float32
    assert "from float64" not in notes(layer)


def test_float64_is_kept_or_noted(x64):
    layer = converters.from_torch(torch_state(dtype=np.float64))
    assert layer.stats["var"].dtype == layer.params["scale"].dtype == jnp.float64
    assert "rounded" not in notes(layer)
    jax.config.update("jax_enable_x64", False)
    layer = converters.from_torch(torch_state(dtype=np.float64))
    assert layer.stats["var"].dtype == jnp.float32
    assert "rounded from float64 to float32, without jax_enable_x64: ['running_mean'" in notes(
        layer
    )


def test_arrays_are_copied():
    """torch goes on in place. Red if its memory is taken over, as JAX can where it is aligned."""
    memory = np.ones(64 + 4 * FEATURES, np.uint8)
    start = -memory.ctypes.data % 64
    var = memory[start : start + 4 * FEATURES].view(np.float32)
    layer = converters.from_torch(torch_state() | {"running_var": var})
    before = np.array(layer.stats["var"])
    var[:] = 7
    np.testing.assert_array_equal(layer.stats["var"], before)


def test_missing_and_unknown_arrays_are_all_listed():
    """One layer's worth, not a model's: a prefix shows here."""
    state = torch_state()
    bad = {k: v for k, v in state.items() if k not in ("bias", "running_var")}
    bad |= {"beta": state["bias"], "bn1.bias": state["bias"]}
    with pytest.raises(
        ValueError,
        match=r"state_dict lacks \['bias', 'running_var'\] and has unknown \['beta', 'bn1.bias'\]"
        r".*named \['bias', 'num_batches_tracked'.*set affine and bias.* needs new ones",
    ):
        converters.from_torch(bad)
    with pytest.raises(ValueError, match=r"lacks \[\] and has unknown \['bias', 'weight'\]"):
        converters.from_torch(state, affine=False)
    del state["num_batches_tracked"]
    with pytest.raises(ValueError, match="momentum=None needs num_batches_tracked"):
        converters.from_torch(state, momentum=None)
    converters.from_torch(state)  # as in checkpoints from before torch counted
    with pytest.raises(ValueError, match=r"unknown \['params/BatchNorm_0'\]"):
        converters.from_flax({"params": {"BatchNorm_0": {}}, "batch_stats": {}})
    with pytest.raises(ValueError, match=r"variables\['mean'\] must be a mapping"):
        converters.from_flax(flax_variables()["batch_stats"])
    with pytest.raises(ValueError, match=r"unknown \['renorm_mean'\]"):
        converters.from_keras(keras_weights() | {"renorm_mean": np.ones(FEATURES)})
    params, state = haiku_layer()
    with pytest.raises(ValueError, match=r"lacks \['var_ema/average', 'var_ema/counter', 'var_e"):
        converters.from_haiku(params, {"mean_ema": state["mean_ema"]}, **HAIKU)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("running_var", np.array([1, 2, -1e-6, 3]), "running_var is negative, -"),
        ("running_var", np.array([1, 2, np.nan, 3]), "running_var has values that are NaN"),
        ("running_var", np.float16([1, 2, np.inf, 3]), "running_var .* float16 overflows above 65"),
        ("weight", np.array([1, 2, np.inf, 3]), "weight has values that are NaN or infinite"),
        ("running_mean", np.ones(3), r"must have one shape, got .*'running_mean': \(3,\)"),
        ("running_mean", np.ones(4, int), "running_mean must be floating, got int"),
        ("bias", None, "bias cannot be read as an array"),
        ("num_batches_tracked", np.ones(2), "num_batches_tracked must be one integer"),
        ("num_batches_tracked", -1, r"num_batches_tracked must be in \[0, 2\^31\), got -1"),
        ("num_batches_tracked", 2**31, r"must be in \[0, 2\^31\)"),
    ],
)
def test_bad_arrays_are_refused(key, value, message):
    with pytest.raises(ValueError, match=message):
        converters.from_torch(torch_state() | {key: value})


def test_features_of_several_axes_are_refused_where_the_source_has_none():
    state = {k: np.ones((2, 2)) for k in torch_state() if k != "num_batches_tracked"}
    with pytest.raises(ValueError, match=r"shape \(2, 2\), but torch's are"):
        converters.from_torch(state)
    with pytest.raises(ValueError, match=r"shape \(2, 2\), but Keras's are"):
        converters.from_keras({k: np.ones((2, 2)) for k in keras_weights()})
    with pytest.raises(ValueError, match=r"shape \(2, 2\), but torch's are"):
        converters.to_torch({}, {"mean": np.ones((2, 2)), "var": np.ones((2, 2))})


def test_bad_settings_are_refused():
    for momentum in (0, -0.1, 1.1):
        with pytest.raises(ValueError, match=r"momentum must be in \(0, 1\] or None.* 0 means no"):
            converters.from_torch(torch_state(), momentum=momentum)
    for momentum in (1, -0.1):
        with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\).* 1 means no updates"):
            converters.from_flax(flax_variables(), momentum=momentum)
        with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\)"):
            converters.from_keras(keras_weights(), momentum=momentum)
        with pytest.raises(ValueError, match=r"decay_rate must be in \[0, 1\)"):
            converters.from_haiku(*haiku_layer(), **HAIKU | {"decay_rate": momentum})
    with pytest.raises(ValueError, match=r"momentum=1e-17 .* decay = 1 - momentum is 1"):
        converters.from_torch(torch_state(), momentum=1e-17)
    with pytest.raises(ValueError, match="must be > 0, got 0"):
        converters.from_torch(torch_state(), eps=0)
    with pytest.raises(ValueError, match="must be > 0, got 0"):
        converters.to_torch({}, some_stats(), epsilon=0)


@pytest.mark.parametrize("momentum", [0.25, None])
def test_to_torch_and_back(momentum):
    state = torch_state()
    layer = converters.from_torch(state, momentum=momentum, eps=1e-3)
    back = converters.to_torch(layer.params, layer.stats, **layer.settings)
    assert back.settings == {
        "num_features": FEATURES,
        "eps": 1e-3,
        "momentum": momentum,
        "affine": True,
    }
    tracked = back.state_dict.pop("num_batches_tracked")
    assert tracked == (7 if momentum is None else 0)
    assert back.notes == ()
    assert state.keys() - back.state_dict.keys() == {"num_batches_tracked"}
    for key, value in back.state_dict.items():
        np.testing.assert_array_equal(value, state[key])
        assert value.dtype == np.float32
        assert value.flags.writeable  # else torch warns


@pytest.mark.parametrize("make", [jnp.float32, np.float64, int])
def test_settings_for_torch_are_numbers_of_python(make):
    settings = converters.to_torch({}, some_stats(), decay=make(0.75)).settings
    assert settings["momentum"] == 1 - float(make(0.75))
    assert type(settings["momentum"]) is float


def test_what_torch_cannot_hold():
    stats = {key: jnp.asarray(value, jnp.bfloat16) for key, value in some_stats().items()}
    back = converters.to_torch({"bias": jnp.ones(4)}, stats, running_var="biased")
    assert "weight is new" in back.notes[0]
    assert "unbiased variance from now on" in back.notes[1]
    assert back.state_dict["weight"].tolist() == [1.0] * 4
    assert back.state_dict["running_var"].dtype == np.float32
    back = converters.to_torch({"scale": jnp.ones(4)}, stats, averaging="ema_debiased")
    assert back.settings["bias"] is False
    assert "does not debias" in back.notes[0]
    counts = {"count": jnp.array([1, 2, 2, 2])}
    for extra, told in ((counts, r"\[1, 2\]"), ({}, r"\[\]")):
        with pytest.raises(ValueError, match=f"must be one number for torch, got {told}"):
            converters.to_torch({}, stats | extra, averaging="cumulative")
