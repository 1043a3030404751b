"""Recalibration of Linen models: against float64, without fitting memory, on eight devices."""

import weakref
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tolerances import PARALLEL, assert_close

from bnjax.inference import fold_model
from bnjax.linen import BatchNorm, model_moments
from bnjax.recalibration import recalibrate

LAYERS = ("first", "second")


class TwoLayers(nn.Module):
    """The second layer sees what the first one made of the same batch."""

    freeze: bool = False
    averaging: str = "ema"

    @nn.compact
    def __call__(self, x, mask=None, *, train: bool):
        for name, width in zip(LAYERS, (4, 3), strict=True):
            frozen = self.freeze and name == "first"
            x = nn.Dense(width, use_bias=False, name=f"dense_{name}")(x)
            norm = BatchNorm(not train or frozen, averaging=self.averaging, name=name)
            x = nn.sigmoid(norm(x, mask=mask))
        return x


def batches_of(*sizes: int) -> list[np.ndarray]:
    """Batches whose means and variances differ."""
    rng = np.random.default_rng(4)
    return [
        np.float32(batch + (1 + batch) * rng.normal(size=(size, 5)))
        for batch, size in enumerate(sizes)
    ]


def make(model=None, seed: int = 0):
    """Variables with scale, bias and statistics that are not the initial ones."""
    model = TwoLayers() if model is None else model
    init = jax.jit(partial(model.init, train=True))
    variables = init(jax.random.key(seed), jnp.zeros((2, 5)))
    rng = np.random.default_rng(seed)
    for name in LAYERS:
        stats = variables["batch_stats"][name]
        for tree in (variables["params"][name], stats):
            for key in tree.keys() - {"count"}:
                tree[key] = jnp.asarray(rng.uniform(0.5, 2, tree[key].shape), jnp.float32)
    return model, variables


def inputs_of_layers(params, batches) -> dict[str, list[np.ndarray]]:
    """Returns the values that the layers normalize in training mode, in float64."""
    found = {}
    x = [np.float64(batch) for batch in batches]
    for name in LAYERS:
        kernel = np.float64(params[f"dense_{name}"]["kernel"])
        found[name] = [batch @ kernel for batch in x]
        y = [reference.forward(batch, **params[name]).y for batch in found[name]]
        x = [1 / (1 + np.exp(-batch)) for batch in y]
    return found


def expected_stats(inputs, estimator, running_var) -> dict[str, np.ndarray]:
    """Computed by the definitions, without recursion."""
    if estimator == "pooled":
        values = np.concatenate(inputs)
        return {"mean": values.mean(0), "var": values.var(0, ddof=int(running_var == "unbiased"))}
    seen = [reference.forward(batch, None, None) for batch in inputs]
    weights = [len(batch) if estimator == "weighted" else 1 for batch in inputs]
    variances = [reference.running_variance(batch, running_var) for batch in seen]
    return {
        "mean": np.average([batch.mean for batch in seen], axis=0, weights=weights),
        "var": np.average(variances, axis=0, weights=weights),
    }


def assert_recalibrated(new, params, batches, estimator="batchwise", running_var="unbiased"):
    for name, inputs in inputs_of_layers(params, batches).items():
        expected = expected_stats(inputs, estimator, running_var)
        for key, value in expected.items():
            assert_close(new["batch_stats"][name][key], value, PARALLEL, f"{name} {key}")


@pytest.mark.parametrize("running_var", ["biased", "unbiased"])
@pytest.mark.parametrize("estimator", ["batchwise", "weighted", "pooled"])
def test_values_with_a_smaller_last_batch(estimator, running_var):
    """Red if the last batch has another weight, or the model runs in inference mode meanwhile."""
    model, variables = make()
    batches = batches_of(8, 8, 3)
    before = jax.tree.map(np.array, variables)
    new = recalibrate(
        model, variables, batches, estimator=estimator, running_var=running_var, train=True
    )
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    jax.tree.map(np.testing.assert_array_equal, new["params"], before["params"])
    assert jax.tree.structure(new) == jax.tree.structure(variables)
    assert_recalibrated(new, variables["params"], batches, estimator, running_var)


def test_the_estimators_are_told_apart():
    """Otherwise the test above could not see which one is used."""
    inputs = inputs_of_layers(make()[1]["params"], batches_of(8, 8, 3))["first"]
    found = [
        expected_stats(inputs, estimator, running_var)["var"]
        for estimator in ("batchwise", "weighted", "pooled")
        for running_var in ("biased", "unbiased")
    ]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert np.abs(one - other).max() > 1e-3


def test_averaged_weights():
    """For an average, neither the average of statistics nor those of either model are right."""
    model, one = make(seed=0)
    _, other = make(seed=1)
    averaged = jax.tree.map(lambda a, b: (a + b) / 2, one["params"], other["params"])
    batches = batches_of(8, 8)
    new = recalibrate(model, {"params": averaged}, batches, train=True)
    assert_recalibrated(new, averaged, batches)
    new = recalibrate(model, one | {"params": averaged}, batches, train=True)
    assert_recalibrated(new, averaged, batches)


def test_evaluation_by_recalibrated_statistics():
    """Pooled over one batch, inference gives what training gives."""
    model, variables = make()
    (batch,) = batches_of(16)
    new = recalibrate(
        model, variables, [batch], estimator="pooled", running_var="biased", train=True
    )
    y, _ = model.apply(variables, batch, train=True, mutable=["batch_stats"])
    assert_close(model.apply(new, batch, train=False), y, PARALLEL)


def test_batches_are_read_one_at_a_time_and_compiled_once(monkeypatch):
    """Red if batches are collected first, if nothing waits for a device slower than they come
    (waits are counted: on a CPU, steps may run before they return), or if the step is traced for
    each batch or each call.
    """
    traces, alive, waits = [], [], []
    block_until_ready = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waits.append(block_until_ready(x)))

    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x, *, train: bool):
            traces.append(x.shape)
            return BatchNorm(not train)(nn.Dense(2)(x))

    def stream(count):
        made = []
        for number in range(count):
            batch = np.full((4, 5), number, np.float32)
            made.append(weakref.ref(batch))
            alive.append(sum(reference() is not None for reference in made))
            yield batch
            del batch

    variables = jax.jit(partial(Counting().init, train=True))(jax.random.key(0), jnp.zeros((2, 5)))
    traces.clear()
    for _ in range(2):  # an equal model, not the same one
        recalibrate(Counting(), variables, stream(12), train=True)
    assert traces == [(4, 5)]
    assert max(alive) <= 5  # the one in work, the next, and what JAX has not yet let go
    assert sum(value is not None for value in waits) == 2 * 11


@pytest.mark.parametrize("wrap", [lambda norm: norm, lambda norm: (norm,), lambda norm: [norm]])
def test_an_equal_partial_is_the_same_setting(wrap):
    """Red where a model with norm=partial(...) is compiled again; another epsilon has to be."""
    traces = []

    class Counting(nn.Module):
        norm: object

        @nn.compact
        def __call__(self, x, *, train: bool):
            traces.append(x.shape)
            norm = self.norm if callable(self.norm) else self.norm[0]
            return norm(not train)(norm(not train)(x))  # the outer one is made first: _0

    def model(epsilon):
        return Counting(wrap(partial(BatchNorm, epsilon=epsilon)))

    x = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    variables = model(1e-3).init(jax.random.key(0), x, train=True)
    traces.clear()
    first, again = (recalibrate(model(1e-3), variables, [x], train=True) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert traces == [(4, 5)]
    other = recalibrate(model(1.0), variables, [x], train=True)["batch_stats"]["BatchNorm_0"]
    assert len(traces) == 2
    expected = x.astype(float).var(0) / (x.astype(float).var(0) + 1) * 4 / 3
    assert_close(other["var"], expected, {"rtol": 1e-5, "atol": 0})


def test_eight_devices_are_one():
    """Each batch sharded by examples: the layers share it, and so do all devices the result."""
    model, variables = make()
    batches = batches_of(16, 16, 8)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    placed = (jax.device_put(batch, NamedSharding(mesh, P("data"))) for batch in batches)
    everywhere = jax.device_put(variables, NamedSharding(mesh, P()))
    new = recalibrate(model, everywhere, placed, estimator="pooled", train=True)
    assert_recalibrated(new, variables["params"], batches, "pooled")
    for leaf in jax.tree.leaves(new["batch_stats"]):
        assert len(leaf.sharding.device_set) == 8
        assert leaf.sharding.is_fully_replicated


def test_masks_come_with_the_batches():
    """A padded last batch is a smaller one; a feature that is masked throughout keeps its own."""
    model, variables = make()
    batches = batches_of(8, 3)
    padded = [np.pad(b, ((0, 8 - len(b)), (0, 0)), constant_values=np.nan) for b in batches]
    masks = [np.arange(8)[:, None] < len(batch) for batch in batches]
    pairs = zip(padded, masks, strict=True)
    new = recalibrate(model, variables, pairs, estimator="weighted", train=True)
    assert_recalibrated(new, variables["params"], batches, "weighted")

    nothing = [(batches[0], np.zeros((8, 1), bool))]
    new = recalibrate(model, variables, nothing, train=True)
    jax.tree.map(np.testing.assert_array_equal, new, variables)


def test_frozen_layers_and_counts_stay():
    model, variables = make(TwoLayers(freeze=True, averaging="cumulative"))
    variables["batch_stats"]["second"]["count"] = jnp.full(3, 7, jnp.int32)
    new = recalibrate(model, variables, batches_of(8, 8), train=True)["batch_stats"]
    old = variables["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, new["first"], old["first"])
    np.testing.assert_array_equal(new["second"]["count"], old["second"]["count"])
    for key in ("mean", "var"):
        assert np.abs(new["second"][key] - old["second"][key]).min() > 1e-3


def test_dropout_has_another_key_for_each_batch():
    """Red if all batches drop the same values: E[x] over them would not be near that of x."""

    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x):
            return BatchNorm(False)(nn.Dropout(0.5, deterministic=False)(x))

    x = np.ones((2, 3), np.float32)
    model = Dropped()
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.jit(model.init)(keys, x)
    means = [
        recalibrate(model, variables, [x] * 64, rngs={"dropout": jax.random.key(seed)})
        for seed in (0, 0, 1)
    ]
    means = [np.asarray(new["batch_stats"]["BatchNorm_0"]["mean"]) for new in means]
    np.testing.assert_array_equal(means[0], means[1])
    assert np.any(means[0] != means[2])
    assert np.all(np.abs(means[0] - 1) < 0.4)  # 4.5 standard deviations
    assert not np.any(np.isin(means[0], [0, 1, 2]))


def test_one_layer_alone_is_a_model_too():
    layer = BatchNorm(False)
    batches = batches_of(8, 8)
    variables = layer.init(jax.random.key(0), batches[0])
    new = recalibrate(layer, variables, batches)
    for key, value in expected_stats(batches, "batchwise", "unbiased").items():
        assert_close(new["batch_stats"][key], value, PARALLEL, key)


def test_features_that_an_explicit_mesh_divides():
    """The new statistics lie as the old ones. Red, JAX's ShardingTypeError, for mixing both."""
    layer = BatchNorm(False)
    batches = batches_of(8, 8)
    mesh = jax.make_mesh((5,), ("model",), (AxisType.Explicit,))
    variables = jax.device_put(layer.init(jax.random.key(0), batches[0]), NamedSharding(mesh, P()))
    placed = [jax.device_put(x, NamedSharding(mesh, P(None, "model"))) for x in batches]
    new = recalibrate(layer, variables, placed, estimator="pooled")["batch_stats"]
    for key, value in expected_stats(batches, "pooled", "unbiased").items():
        assert new[key].sharding.is_fully_replicated
        assert_close(new[key], value, PARALLEL, key)


@pytest.mark.parametrize("estimator", ["batchwise", "weighted", "pooled"])
def test_complex_numbers(estimator):
    """From `init`, whose mean is real: red if it cuts the new one, or for x^2 in place of |x|^2."""
    batches = [np.complex64(x + 2j * x[::-1]) for x in batches_of(8, 8, 3)]
    layer = BatchNorm(False, use_scale=False, use_bias=False)
    variables = layer.init(jax.random.key(0), batches[0])
    new = recalibrate(layer, variables, batches, estimator=estimator)["batch_stats"]
    real, imaginary = (
        expected_stats([part(np.complex128(x)) for x in batches], estimator, "unbiased")
        for part in (np.real, np.imag)
    )
    assert_close(new["mean"].real, real["mean"], PARALLEL)
    assert_close(new["mean"].imag, imaginary["mean"], PARALLEL)
    assert_close(new["var"], real["var"] + imaginary["var"], PARALLEL)


def test_what_is_refused():
    model, variables = make()
    batches = batches_of(8)
    with pytest.raises(ValueError, match="batches is empty"):
        recalibrate(model, variables, [], train=True)
    with pytest.raises(ValueError, match=r"no bnjax.linen.BatchNorm .*in training mode"):
        recalibrate(model, variables, batches, train=False)
    with pytest.raises(ValueError, match=r"estimator must be one of .*'pooled', got 'exact'"):
        recalibrate(model, variables, batches, estimator="exact", train=True)
    with pytest.raises(ValueError, match="running_var must be one of"):
        recalibrate(model, variables, batches, running_var="mean", train=True)
    with pytest.raises(TypeError, match=r"settings \['mask', 'train'\] must be hashable"):
        recalibrate(model, variables, batches, mask=jnp.ones((8, 1), bool), train=True)


@pytest.mark.parametrize("batches", [jnp.ones((8, 5)), np.ones((8, 5)), {"x": jnp.ones((8, 5))}])
def test_one_batch_is_not_taken_for_many(batches):
    model, variables = make()
    with pytest.raises(TypeError, match=r"an iterable of batches, got one .*: pass \[x\] for one"):
        recalibrate(model, variables, batches, train=True)


def test_labels_are_refused_by_name():
    """As what the model does not take, or as its mode, which is given, too."""
    (x,) = batches_of(8)
    model, variables = make()
    said = r"a tuple holds positional .* TwoLayers.__call__ does not take these 3 \(.*\): drop lab"
    with pytest.raises(TypeError, match=said):
        recalibrate(model, variables, [(x, None, jnp.ones(8))], train=True)
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), x, True)
    with pytest.raises(TypeError, match=r"these 2 \(it gives use_running_average, too\): drop"):
        recalibrate(layer, variables, [(x, jnp.ones(8))], use_running_average=False)


BOTH = {"image": np.ones((8, 5), np.float32), "label": np.ones(8)}


class TakesADict(nn.Module):
    """A batch may be a dict, whose errors are then the model's own."""

    @nn.compact
    def __call__(self, batch):
        return BatchNorm(False)(batch["image"])


@pytest.mark.filterwarnings("ignore:shape requires ndarray")  # Flax asks for that of a dict
@pytest.mark.parametrize(
    "use",
    [
        lambda model, variables: recalibrate(model, variables, [BOTH], train=True),
        lambda model, variables: recalibrate(model, variables, [(BOTH, None)], train=True),
        lambda model, variables: model_moments(model, variables, BOTH, train=True),
        lambda model, variables: fold_model(model, variables, BOTH, train=False),
    ],
)
def test_a_dict_is_one_argument(use):
    said = r"a dict goes to TwoLayers whole, .*, and fails there \(.*\): .*batch\['image'\]"
    with pytest.raises(TypeError, match=said):
        use(*make())


def test_a_model_may_take_a_dict():
    variables = TakesADict().init(jax.random.key(0), BOTH)
    new = recalibrate(TakesADict(), variables, [BOTH])["batch_stats"]["BatchNorm_0"]
    assert_close(new["mean"], BOTH["image"].mean(0), PARALLEL)
    with pytest.raises(KeyError, match="image"):
        recalibrate(TakesADict(), variables, [{"label": BOTH["label"]}])


@pytest.mark.parametrize(
    "use",
    [
        lambda model, variables: recalibrate(model, variables, batches_of(8), train=True),
        lambda model, variables: model_moments(model, variables, jnp.ones((8, 5)), train=True),
        lambda model, variables: fold_model(model, variables, jnp.ones((8, 5)), train=False),
    ],
)
def test_variables_are_collections(use):
    """Not `params` alone, whose layers would be taken for collections; there may be none."""
    model, variables = make()
    said = r"variables must have .*'params': \.\.\., 'batch_stats': .*dense_first"
    with pytest.raises(ValueError, match=said):
        use(model, variables["params"])
    with pytest.raises(TypeError, match=r"variables must have .*, got list"):
        use(model, [variables])
    layer = BatchNorm(False, use_scale=False, use_bias=False)
    assert model_moments(layer, {}, batches_of(8)[0]).mean.shape == (5,)


class Encoder(nn.Module):
    """A method that takes two arrays, where the call takes one."""

    @nn.compact
    def __call__(self, x):
        return BatchNorm(False, name="norm")(x)

    def encode(self, x, shift):
        return self(x + shift)


@pytest.mark.parametrize("method", ["encode", Encoder.encode, Encoder().encode])
def test_a_tuple_holds_what_the_method_takes(method):
    x, shift = batches_of(8, 8)
    variables = Encoder().init(jax.random.key(0), x)
    new = recalibrate(Encoder(), variables, [(x, shift)], method=method)
    mean = (np.float64(x) + shift).mean(0)
    assert_close(new["batch_stats"]["norm"]["mean"], mean, PARALLEL)
    with pytest.raises(TypeError, match=r"Encoder.encode does not take these 3 .*: drop labels"):
        recalibrate(Encoder(), variables, [(x, shift, x)], method=method)


@pytest.mark.parametrize(
    "use",
    [
        lambda model: recalibrate(model, {}, [jnp.ones((8, 5))]),
        lambda model: fold_model(model, {}, jnp.ones((8, 5))),
        lambda model: model_moments(model, {}, jnp.ones((8, 5))),
    ],
)
def test_a_model_of_linen_is_needed(use):
    said = r"must be a Linen module, .* got flax.nnx.*Linear; bnjax has no counterpart for NNX"
    with pytest.raises(TypeError, match=said):
        use(nnx.Linear(5, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match=r"got the class .*TwoLayers"):
        use(TwoLayers)
