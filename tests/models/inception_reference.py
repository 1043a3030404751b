"""The Inception family in NumPy float64: structure written again from the papers, widths read off
the parameters; no code of bnjax. Slow and plain on purpose."""

import numpy as np

EPSILON = 1e-3


class Network:
    """Evaluates a network on its variables; in training, `moments` keeps what batches gave."""

    def __init__(
        self,
        variables,
        *,
        train,
        activation=lambda x: np.maximum(x, 0),
        padding="SYMMETRIC",
        count_include_pad=False,
        local_response_norm=False,
        linear=(),
    ):
        self.params, self.stats = variables["params"], variables.get("batch_stats", {})
        self.train, self.activation, self.padding = train, activation, padding
        self.count_include_pad = count_include_pad
        self.local_response_norm = local_response_norm
        self.linear = linear  # endings of the paths of layers without nonlinearity
        self.moments, self.outputs = {}, {}

    def layer(self, x, path, strides=1, padding=None):
        """Convolution or dense layer, normalization, nonlinearity."""
        params = find(self.params, path)
        if "depthwise" in params:
            x = depthwise(x, params["depthwise"]["kernel"], strides, self.padding)
            strides = 1
        if "dense" in params:
            x = x @ params["dense"]["kernel"] + params["dense"].get("bias", 0)
        else:
            conv = params["conv"]
            x = convolve(x, conv["kernel"], strides, padding or self.padding) + conv.get("bias", 0)
        if "norm" in params:
            x = self.normalize(x, path, params["norm"])
        return x if path.endswith(self.linear) else self.activation(x)

    def normalize(self, x, path, params):
        stats = find(self.stats, path)["norm"]
        mean, var = stats["mean"], stats["var"]
        if self.train:
            per_activation = params["scale"].ndim == 3
            axes = 0 if per_activation else tuple(range(x.ndim - 1))
            mean, var = x.mean(axes), x.var(axes)
            self.moments[path] = mean, var
        return (x - mean) / np.sqrt(var + EPSILON) * params["scale"] + params["bias"]

    def chain(self, x, *steps):
        """Layers one after the other; a step is a path, or a path and its further arguments."""
        for step in steps:
            x = self.layer(x, step) if isinstance(step, str) else self.layer(x, *step)
        return x

    def average(self, x):
        return average_pool(x, 3, 1, "SAME", count_include_pad=self.count_include_pad)

    def logits(self, x, path="logits"):
        dense = find(self.params, path)
        return x @ dense["kernel"] + dense["bias"]

    def stem(self, x, total_stride):
        """Of GoogLeNet and BN-Inception."""
        lrn = local_response_normalization if self.local_response_norm else lambda x: x
        x = self.layer(x, "conv1", 2 if total_stride == 8 else 1)
        x = max_pool(x, 3, 2, "SAME") if total_stride >= 4 else x
        x = lrn(self.chain(lrn(x), "conv2_reduce", "conv2"))
        return max_pool(x, 3, 2, "SAME") if total_stride >= 2 else x

    def googlenet(self, x, total_stride=1, last_pool=3):
        """Main logits and those of the side heads."""
        x = self.stem(x, total_stride)
        heads = []
        for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
            at = f"inception_{name}/"
            branches = [
                self.chain(x, at + "conv1x1"),
                self.chain(x, at + "conv3x3_reduce", at + "conv3x3"),
                self.chain(x, at + "conv5x5_reduce", at + "conv5x5"),
                self.chain(max_pool(x, 3, 1, "SAME"), at + "pool_project"),
            ]
            x = np.concatenate(branches, -1)
            if name in ("4a", "4d") and self.train:
                y = average_pool(x, 5, 3, "VALID")
                y = self.layer(y, f"auxiliary_{name}/conv1x1").reshape(len(x), -1)
                y = self.layer(y, f"auxiliary_{name}/hidden")
                heads.append(self.logits(y, f"auxiliary_{name}/logits"))
            if name in ("3b", "4e"):
                x = max_pool(x, 3 if name == "3b" else last_pool, 2, "SAME")
        return self.logits(x.mean((1, 2))), tuple(heads)

    def bn_inception(self, x, total_stride=1):
        x = self.stem(x, total_stride)
        for name in ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
            at = f"inception_{name}/"
            strides = 2 if name in ("3c", "4e") else 1
            double = (at + "double3x3_reduce", at + "double3x3_a", (at + "double3x3_b", strides))
            branches = [
                self.chain(x, at + "conv3x3_reduce", (at + "conv3x3", strides)),
                self.chain(x, *double),
            ]
            if strides == 2:
                x = np.concatenate([*branches, max_pool(x, 3, 2, "SAME")], -1)
                continue
            pooled = max_pool(x, 3, 1, "SAME") if name == "5b" else self.average(x)
            one = self.layer(x, at + "conv1x1")
            x = np.concatenate([one, *branches, self.layer(pooled, at + "pool_project")], -1)
        return self.logits(x.mean((1, 2)))

    def inception_v3(self, x, total_stride=1):
        """Main logits and those of the side head; the outline of public code."""
        x = self.layer(x, "conv_1a", 2 if total_stride == 8 else 1, "VALID")
        x = self.chain(x, ("conv_2a", 1, "VALID"), ("conv_2b", 1, "SAME"))
        x = max_pool(x, 3, 2, "VALID") if total_stride >= 4 else x
        x = self.chain(x, "conv_3b", ("conv_4a", 1, "VALID"))
        x = max_pool(x, 3, 2, "VALID") if total_stride >= 2 else x
        for name in ("5b", "5c", "5d"):
            x = self.traditional(x, f"mixed_{name}/")
        x = self.branches(
            x,
            "mixed_6a/",
            [("conv3x3", 2, "VALID")],
            ["double3x3_reduce", "double3x3_a", ("double3x3_b", 2, "VALID")],
            pooled=max_pool(x, 3, 2, "VALID"),
        )
        for name in ("6b", "6c", "6d", "6e"):
            x = self.factorized(x, f"mixed_{name}/")
        heads = (self.v3_head(x),) if self.train else ()
        x = self.branches(
            x,
            "mixed_7a/",
            ["conv3x3_reduce", ("conv3x3", 2, "VALID")],
            ["conv7x7_reduce", "conv7x7_1x7", "conv7x7_7x1", ("conv7x7_3x3", 2, "VALID")],
            pooled=max_pool(x, 3, 2, "VALID"),
        )
        for name in ("7b", "7c"):
            x = self.expanded(x, f"mixed_{name}/")
        return self.logits(x.mean((1, 2))), heads

    def branches(self, x, at, *branches, pooled):
        def absolute(step):
            return at + step if isinstance(step, str) else (at + step[0], *step[1:])

        outputs = [self.chain(x, *map(absolute, branch)) for branch in branches]
        return np.concatenate([*outputs, pooled], -1)

    def traditional(self, x, at):
        return self.branches(
            x,
            at,
            ["conv1x1"],
            ["conv5x5_reduce", "conv5x5"],
            ["double3x3_reduce", "double3x3_a", "double3x3_b"],
            pooled=self.layer(self.average(x), at + "pool_project"),
        )

    def factorized(self, x, at):
        long = ("reduce", "a_7x1", "a_1x7", "b_7x1", "b_1x7")
        return self.branches(
            x,
            at,
            ["conv1x1"],
            ["conv7x7_reduce", "conv7x7_1x7", "conv7x7_7x1"],
            [f"double7x7_{step}" for step in long],
            pooled=self.layer(self.average(x), at + "pool_project"),
        )

    def expanded(self, x, at):
        double = ["double3x3_reduce", "double3x3_a"]
        return self.branches(
            x,
            at,
            ["conv1x1"],
            ["conv3x3_reduce", "conv3x3_1x3"],
            ["conv3x3_reduce", "conv3x3_3x1"],
            [*double, "double3x3_b_1x3"],
            [*double, "double3x3_b_3x1"],
            pooled=self.layer(self.average(x), at + "pool_project"),
        )

    def v3_head(self, x):
        x = average_pool(x, 5, 3, "VALID")
        x = self.chain(x, "auxiliary/conv1x1", ("auxiliary/hidden", 1, "VALID"))
        return self.logits(x.mean((1, 2)), "auxiliary/logits")


def find(tree, path):
    for name in path.split("/"):
        tree = tree[name]
    return tree


def windows(x, kernel, strides, padding, fill=0.0):
    """For each position of the kernel the values that it meets: `{(i, j): [n, h', w', c]}`."""
    pads = []
    for n, size in zip(x.shape[1:3], kernel, strict=True):
        total = {
            "SAME": max(0, (-(-n // strides) - 1) * strides + size - n),
            "SYMMETRIC": 2 * (size // 2),
            "VALID": 0,
        }[padding]
        pads.append((total // 2, total - total // 2))
    x = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    height, width = (
        (n - size) // strides + 1 for n, size in zip(x.shape[1:3], kernel, strict=True)
    )
    return {
        (i, j): x[
            :,
            i : i + strides * (height - 1) + 1 : strides,
            j : j + strides * (width - 1) + 1 : strides,
        ]
        for i in range(kernel[0])
        for j in range(kernel[1])
    }


def convolve(x, kernel, strides, padding):
    met = windows(x, kernel.shape[:2], strides, padding)
    return sum(value @ kernel[at] for at, value in met.items())


def depthwise(x, kernel, strides, padding):
    """Output map c * multiplier + j sees channel c alone."""
    multiplier = kernel.shape[-1] // x.shape[-1]
    met = windows(x, kernel.shape[:2], strides, padding)
    return sum(np.repeat(value, multiplier, -1) * kernel[at][0] for at, value in met.items())


def max_pool(x, size, strides, padding):
    return np.max(list(windows(x, (size, size), strides, padding, -np.inf).values()), axis=0)


def average_pool(x, size, strides, padding, *, count_include_pad=False):
    total = sum(windows(x, (size, size), strides, padding).values())
    if count_include_pad:
        return total / size**2
    return total / sum(windows(np.ones_like(x), (size, size), strides, padding).values())


def local_response_normalization(x, size=5, alpha=1e-4, beta=0.75, k=1.0):
    """One channel at a time."""
    y = np.empty_like(x)
    for c in range(x.shape[-1]):
        near = x[..., max(0, c - size // 2) : c + size // 2 + 1]
        y[..., c] = x[..., c] / (k + alpha / size * (near**2).sum(-1)) ** beta
    return y
