"""`python -m bnjax.models [NAME ...] [--depth N]`: each network's layer table; a few seconds."""

import argparse

import flax.linen as nn

from bnjax.command import command
from bnjax.linen import BatchNorm
from bnjax.models import MLP, BNInception, GoogLeNet, InceptionV3, LeNet5
from bnjax.models.rethinking import TABLE_3
from bnjax.models.summary import format_summary, summarize

NETWORKS: dict[str, tuple[nn.Module, tuple[int, int, int]]] = {
    "mlp": (MLP(norm=BatchNorm), (28, 28, 1)),
    "lenet5": (LeNet5(norm=BatchNorm), (28, 28, 1)),
    "googlenet": (GoogLeNet(), (224, 224, 3)),
    "googlenet_bn": (GoogLeNet(norm=BatchNorm, local_response_norm=False), (224, 224, 3)),
    "inception": (BNInception(local_response_norm=True, dropout=0.4), (224, 224, 3)),
    "bn_inception": (BNInception(norm=BatchNorm), (224, 224, 3)),
    "bn_inception_sizes": (
        BNInception(norm=BatchNorm, figure_5="sizes", stem="separable"),
        (224, 224, 3),
    ),
    "bn_inception_cifar": (
        BNInception(10, norm=BatchNorm, width=0.25, stem_stride=1),
        (32, 32, 3),
    ),
    "inception_v2": (TABLE_3["inception_v2"].build(), (299, 299, 3)),
    "inception_table_1": (InceptionV3(norm=BatchNorm, outline="table_1"), (299, 299, 3)),
    "inception_v3": (InceptionV3(norm=BatchNorm), (299, 299, 3)),
}


@command()
def main(arguments: list[str] | None = None) -> None:
    """Prints the tables of the networks that are named, or of all."""
    parser = argparse.ArgumentParser(prog="python -m bnjax.models", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(NETWORKS)}; all by default"
    )
    parser.add_argument("--depth", type=int, default=1, help="2 or 3: every convolution as well")
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in NETWORKS:
            parser.error(f"there is no network {name!r}: choose from {', '.join(NETWORKS)}")
    if options.depth < 1:
        parser.error(f"--depth must be 1 or more, got {options.depth}")
    for name in options.names or NETWORKS:
        model, image = NETWORKS[name]
        title = f"{name}: {type(model).__name__} on {'x'.join(map(str, image))}"
        print(format_summary(title, summarize(model, image, depth=options.depth)) + "\n")


if __name__ == "__main__":
    main()
