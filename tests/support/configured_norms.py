"""Settings of batch normalization as configurations have them: two, that differ in each."""

CONFIGURED = (
    {"decay": 0.8, "epsilon": 1e-2, "averaging": "cumulative", "running_var": "biased"},
    {"decay": 0.7, "epsilon": 1e-4, "averaging": "ema", "running_var": "unbiased"},
)


def settings_of(layer) -> dict:
    """The same of a made `BatchNorm`."""
    names = {"decay": "momentum"}
    return {name: getattr(layer, names.get(name, name)) for name in CONFIGURED[0]}
