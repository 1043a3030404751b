"""Optimizers whose numbers live in the state, so that runs that differ in them share a program."""

import jax
import optax


def sgd(learning_rate: float | jax.Array) -> optax.GradientTransformation:
    """Plain stochastic gradient descent; the learning rate is an array in the optimizer's state."""
    return optax.inject_hyperparams(optax.sgd)(learning_rate=learning_rate)
