"""The functions of a run, and the same compiled; runs that differ in numbers alone share them."""

import math
from collections.abc import Callable, Iterable
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnjax.compilers.cost import abstract
from bnjax.data.views.augmentation import Augmentation
from bnjax.data.views.inputs import to_unit_range
from bnjax.data.views.on_device import evaluation_views, training_views, view_keys
from bnjax.models import Logits
from bnjax.models.training_mode import apply_train
from bnjax.recalibration import recalibrate
from bnjax.training.accumulation import make_accumulating_step
from bnjax.training.averaging import Average, start_average, update_average
from bnjax.training.divergence import start_watch
from bnjax.training.objectives import Metrics, classification_metrics
from bnjax.training.parallel import DataParallel
from bnjax.training.state import TrainState
from bnjax.training.steps import make_eval_step, make_loss, make_train_step, scan_steps
from experiments.harness import affects
from experiments.harness.images.arm import ImageArm

Tree = Any


class State(NamedTuple):
    """What a run carries from step to step.

    Attributes:
        train: parameters, statistics, optimizer.
        average: of parameters and statistics; None without averaging.
    """

    train: TrainState
    average: Average | None


class Chosen(NamedTuple):
    """Training examples, chosen from those on the devices; all leaves have one shape.

    Attributes:
        indices: int32, which examples.
        positions: uint32, where each stands in the order, see `bnjax.data.order`.
    """

    indices: Any
    positions: Any


class Resident(NamedTuple):
    """What lies on every device, and what a dispatch makes of it.

    Attributes:
        images: uint8 `[n, height * width * channels]`: rows, of which a TPU gathers some without
            laying out all of them anew.
        labels: int32 `[n]`.
        seed: of the views, uint32.
        count: steps of the dispatch, int32; None for all that are chosen.
    """

    images: Any
    labels: Any
    seed: Any
    count: Any = None

    @classmethod
    def abstract(cls, examples: int, image: tuple[int, int, int]) -> Self:
        """Returns the shapes of so many images, for a dispatch of all that are chosen."""
        return cls(
            jax.ShapeDtypeStruct((examples, math.prod(image)), jnp.uint8),
            jax.ShapeDtypeStruct((examples,), jnp.int32),
            jax.ShapeDtypeStruct((), jnp.uint32),
        )


class Views(NamedTuple):
    """How programs make views of images that lie on the devices.

    Attributes:
        image: height, width and channels of a stored image.
        augmentation: of training views.
        centre: part of the shorter side that evaluation sees.
    """

    image: tuple[int, int, int]
    augmentation: Augmentation
    centre: float

    def training(self, data: Resident, chosen: Chosen) -> jax.Array:
        """Views `[..., size, size, 3]` of examples `[...]`."""
        indices, positions = (leaf.ravel() for leaf in chosen)
        images = data.images[indices].reshape(-1, *self.image)
        views = training_views(images, view_keys(data.seed, positions), self.augmentation)
        return views.reshape(*chosen.indices.shape, *views.shape[1:])

    def evaluation(self, rows: jax.Array) -> jax.Array:
        """Views `[n, size, size, 3]` of rows of pixels."""
        images = rows.reshape(-1, *self.image)
        return evaluation_views(images, self.augmentation.image_size, fraction=self.centre)


class TrainingProgram(NamedTuple):
    """The functions that train, before they are compiled, and what they are compiled for.

    Attributes:
        init: `(seed, learning_rate) -> State`, of an int32 and a float32 scalar.
        step: `(State, batch) -> (State, Metrics)`, of `steps_per_dispatch` steps; metrics summed.
            Of data on the devices `(State, Chosen, Resident) -> (State, Metrics)`.
        batch_shapes: images and labels of the global batches of a dispatch, `[steps, n, ...]`, or
            `[steps, micro_batches, n, ...]`; or a `Chosen`.
        axis: of the examples in them, as `DataParallel.split` and `compile_train` take it.
    """

    init: Callable[[jax.Array, jax.Array], State]
    step: Callable[..., tuple[State, Metrics]]
    batch_shapes: tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct] | Chosen
    axis: int


def training_program(
    config: Any,
    arm: ImageArm,
    parallel: DataParallel,
    *,
    classes: int = 1000,
    views: Views | None = None,
) -> TrainingProgram:
    """Returns what trains an arm, with `views` from images on the devices.

    Raises:
        ValueError: if the devices cannot share the batch.
    """
    seen = SimpleNamespace(**affects.programs(config))
    return _training_program(seen, _arm(type(arm), affects.programs(arm)), parallel, classes, views)


def batch_layout(config: Any, steps: int) -> tuple[int, ...]:
    """Returns the shape of the labels of a dispatch; the last axis is of examples."""
    part = config.batch_size // config.micro_batches
    parts = (config.micro_batches,) if config.micro_batches > 1 else ()
    return (steps, *parts, part)


def logits_of(model: nn.Module, variables: Tree, images: jax.Array) -> jax.Array:
    """Returns a network's logits in inference; of one with side heads, the classifier's.

    Args:
        model: called with `(images, train=...)`.
        variables: its parameters and statistics.
        images: uint8 `[n, h, w, 3]`.
    """
    outputs: Any = model.apply(variables, to_unit_range(images), train=False)
    return outputs.main if isinstance(outputs, Logits) else outputs


def variables_of(state: State) -> dict[str, Tree]:
    """What is evaluated: the average where there is one, else what trains."""
    return state.train.variables if state.average is None else state.average.values


class Programs:
    """The compiled programs of one network.

    Attributes:
        axis: of the examples in a dispatch's arrays.
        init: `(seed, learning_rate) -> State` on the devices.
        train: `(State, batch) -> (State, Metrics)`; gives up the old state's buffers. Of data on
            the devices `(State, Chosen, Resident) -> (State, Metrics)`.
        evaluate: `(variables, Batch) -> Metrics`, by the running statistics. Of data on the devices
            an `EvalBatches` with rows of pixels.
        views: `(Resident, Chosen) -> images`, training views of data on the devices.
    """

    def __init__(
        self,
        config: Any,
        arm: ImageArm,
        classes: int,
        parallel: DataParallel,
        views: Views | None = None,
    ) -> None:
        program = _training_program(config, arm, parallel, classes, views)
        model = arm.model(config, classes=classes)

        logits = partial(logits_of, model)

        def evaluate(variables: Tree, batch: Any) -> Metrics:
            return classification_metrics(logits(variables, batch.images), batch.labels, batch.mask)

        self._model, self._init = model, program.init
        self._replicated, _ = parallel.shardings()
        self.axis = program.axis
        self.init = parallel.compile_init(program.init)
        self.train = parallel.compile_train(program.step, axis=program.axis)
        if views is None:
            self.evaluate = parallel.compile_eval(evaluate)
        else:
            of_batches = make_eval_step(logits, views.evaluation)
            self.evaluate = parallel.compile_eval(of_batches, axis=1)
            # recalibrate, which gets them, is jitted
            self.views = parallel.under_jit().compile_map(views.training)

    def compile(self, arguments: tuple[Any, ...], test: Any) -> None:
        """Compiles what trains and evaluates, for the arguments after the first; runs nothing."""
        scalars = (jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.int32, jnp.float32))
        state = abstract(jax.eval_shape(self._init, *scalars), self._replicated)
        self.train.lower(state, *arguments).compile()
        self.evaluate.lower(variables_of(state), test).compile()

    def population(
        self, variables: Tree, batches: Iterable[jax.Array], key: jax.Array
    ) -> dict[str, Tree]:
        """The variables, with the statistics of Algorithm 2 over batches of images."""
        images = map(to_unit_range, batches)
        return recalibrate(self._model, variables, images, train=True, rngs={"dropout": key})


def programs_of(
    config: Any,
    arm: ImageArm,
    parallel: DataParallel,
    *,
    classes: int,
    views: Views | None = None,
) -> Programs:
    """Returns an arm's compiled programs, those of an earlier call where only numbers differ."""
    kind: Any = type(arm)
    return _programs(_items(config), kind, _items(arm), parallel, classes, views)


def forget() -> None:
    """Forgets the programs of earlier calls, where an arm's class makes another network now."""
    _programs.cache_clear()


def _items(record: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(affects.programs(record).items())


@cache  # all that one command compiles: those of many arms are made ahead
def _programs(
    config: tuple[tuple[str, Any], ...],
    kind: type[ImageArm],
    settings: tuple[tuple[str, Any], ...],
    parallel: DataParallel,
    classes: int,
    views: Views | None,
) -> Programs:
    seen, arm = SimpleNamespace(**dict(config)), _arm(kind, dict(settings))
    return Programs(seen, arm, classes, parallel, views)


def _arm(kind: type[ImageArm], settings: dict[str, Any]) -> ImageArm:
    """An arm as programs may read it: it has no other fields."""
    arm = object.__new__(kind)
    vars(arm).update(settings)
    return arm


def _training_program(
    config: Any, arm: ImageArm, parallel: DataParallel, classes: int, views: Views | None
) -> TrainingProgram:
    parallel.check_batch(config.batch_size // config.micro_batches)
    axis_name = parallel.axis_name
    model = arm.model(config, classes=classes, axis_name=axis_name)
    layout = batch_layout(config, config.steps_per_dispatch)
    size = arm.image_size(config)
    image = (size, size, 3)
    averaging = config.parameter_averaging

    def init(seed: jax.Array, learning_rate: jax.Array) -> State:
        key = jax.random.key(seed)
        whole = arm.model(config, classes=classes)
        variables = whole.init(key, jnp.zeros((1, *image)), train=False)
        params, stats = variables["params"], variables.get("batch_stats", {})
        kernels_key, dropout_key = (jax.random.fold_in(key, purpose) for purpose in (1, 2))
        params = arm.draw(params, kernels_key)
        opt_state = arm.optimizer(config, learning_rate).init(params)
        train = TrainState(jnp.int32(0), params, stats, opt_state, key=dropout_key)
        average = None if averaging == "none" else start_average(train.variables)
        return State(start_watch(train), average)

    def apply(variables: Tree, images: jax.Array, key: jax.Array) -> tuple[jax.Array, Tree]:
        return apply_train(model, variables, to_unit_range(images), key)

    tx = arm.optimizer(config, 0.0)  # the rate in use is the one in the state
    objective = arm.objective(config)
    if config.micro_batches == 1:
        train_step = make_train_step(apply, tx, objective, axis_name=axis_name)
    else:
        loss = make_loss(apply, objective)
        train_step = make_accumulating_step(loss, tx, statistics="once", axis_name=axis_name)

    def step(state: State, batch: Any) -> tuple[State, Metrics]:
        train, metrics = train_step(state.train, batch)
        average = state.average
        if average is not None:
            moved = update_average(
                average, train.variables, averaging=averaging, decay=config.parameter_decay
            )
            # It stays where a run that has diverged stays, to the end of the dispatch.
            average = jax.tree.map(partial(jnp.where, train.fault == 0), moved, average)
        return State(train, average), metrics

    axis, integers = len(layout) - 1, jax.ShapeDtypeStruct(layout, jnp.int32)
    if views is None:
        images = jax.ShapeDtypeStruct((*layout, *image), jnp.uint8)
        return TrainingProgram(init, scan_steps(step), (images, integers), axis)

    def resident_steps(state: State, chosen: Chosen, data: Resident) -> tuple[State, Metrics]:
        def resident_step(state: State, chosen: Chosen) -> tuple[State, Metrics]:
            return step(state, (views.training(data, chosen), data.labels[chosen.indices]))

        return scan_steps(resident_step)(state, chosen, data.count)

    positions = jax.ShapeDtypeStruct(layout, jnp.uint32)
    return TrainingProgram(init, resident_steps, Chosen(integers, positions), axis)
