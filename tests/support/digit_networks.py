"""The networks of digits in NumPy float64; `normalize(layer, inputs)` says how they normalize.

Both return logits and the input of the last hidden layer's nonlinearity. No code of bnjax.
"""

import numpy as np
import reference


def mlp(params, images, normalize):
    """Three hidden layers of sigmoids."""
    x = images.reshape(len(images), -1)
    for i in (1, 2, 3):
        last = normalize(f"hidden{i}", x @ params[f"dense{i}"]["kernel"])
        x = 1 / (1 + np.exp(-last))
    return _dense(x, params["logits"]), last


def lenet(params, images, normalize):
    """LeNet-5 with hyperbolic tangents and the means of 2x2."""
    x = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for name in ("C1", "C3"):
        windows = np.lib.stride_tricks.sliding_window_view(x, (5, 5), (1, 2))
        x = np.einsum("nijchw,hwcd->nijd", windows, params[name]["kernel"], optimize=True)
        x = np.tanh(normalize(f"{name}_activation", x))
        n, height, width, channels = x.shape
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))
    x = x.reshape(len(x), -1)
    for name in ("C5", "F6"):
        last = normalize(f"{name}_activation", x @ params[name]["kernel"])
        x = np.tanh(last)
    return _dense(x, params["logits"]), last


def by_batch(params, epsilon, seen=None):
    """As in training; `seen` takes the inputs of each layer."""

    def normalize(layer, inputs):
        if seen is not None:
            seen.setdefault(layer, []).append(inputs)
        return reference.forward(inputs, **params[layer]["norm"], epsilon=epsilon).y

    return normalize


def by_statistics(params, epsilon, stats):
    """As in inference, by the mean and variance of each layer."""

    def normalize(layer, inputs):
        moments = {key: stats[layer][key] for key in ("mean", "var")}
        return reference.population(inputs, **params[layer]["norm"], **moments, epsilon=epsilon)

    return normalize


def _dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]
