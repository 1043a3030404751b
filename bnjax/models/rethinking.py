"""The networks that "Rethinking the Inception Architecture" compares (Szegedy et al. 2016)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from bnjax.models.bn_inception import BNInception
from bnjax.models.googlenet import GoogLeNet
from bnjax.models.inception import InceptionNetwork
from bnjax.models.inception_v3 import InceptionV3
from bnjax.models.norms import Norm


@dataclass(frozen=True)
class Row:
    """A network of Table 3.

    Attributes:
        label: its name in the table.
        make: its class, with the arguments that make it this network.
        side: of its square images, in pixels.
        published: its cost in the table, in 1e9 operations, for comparison with `summarize`.
        normalized: whether it is normalized.
    """

    label: str
    make: Callable[..., InceptionNetwork]
    side: int
    published: float
    normalized: bool = True

    def build(self, *, norm: Norm | str = "batch", **settings: Any) -> InceptionNetwork:
        """The network.

        Args:
            norm: its normalization, which GoogLeNet, the first row, does without.
            **settings: further arguments of the class, such as `classes`, and `width` and
                `stem_stride` for small images.

        Raises:
            TypeError, ValueError: as the class, for arguments that it does not take.
        """
        return self.make(norm=norm if self.normalized else None, **settings)


TABLE_3: Mapping[str, Row] = MappingProxyType(
    {
        "googlenet": Row("GoogLeNet", GoogLeNet, 224, 1.5, normalized=False),
        "bn_googlenet": Row(
            "BN-GoogLeNet", partial(GoogLeNet, local_response_norm=False), 224, 1.5
        ),
        "bn_inception": Row("BN-Inception", BNInception, 224, 2.0),
        "inception_v2": Row(
            "Inception-v2", partial(InceptionV3, stem="7x7", auxiliary="plain"), 299, 3.8
        ),
        "factorized_7x7": Row(
            "Inception-v2 + factorized 7x7", partial(InceptionV3, auxiliary="plain"), 299, 4.8
        ),
        "inception_v3": Row("Inception-v2 + BN-auxiliary = Inception-v3", InceptionV3, 299, 4.8),
    }
)
"""The networks of Table 3, from its top. Two of its rows, RMSProp and label smoothing, train
`inception_v2` in another way, and are kept from there on.

Inception-v2 is here Inception-v3 with a 7x7 stem and a side head whose dense layer is not
normalized, in the outline of public code; `build(outline="table_1")` has that of Table 1, which the
paper calls Inception-v2 as well. The first three cost about what is published, 1.58e9, 1.58e9 and
2.03e9 multiply-adds; the others cost more, 5.30e9, 5.71e9 and 5.71e9. The published step from 3.8
to 4.8 is larger than what the three convolutions that stand for the 7x7 one cost in all, 0.62e9."""

TABLE_2: Mapping[int, int] = MappingProxyType({299: 8, 151: 4, 79: 2})
"""`stem_stride` of `InceptionV3` by the side of its images, the networks of Table 2: first layer
with stride 2 and max pool, stride 1 and max pool, stride 1 and no pool.

The paper calls their cost the same. At 151 pixels it is that of 299, at 79 it is 6.2 % less, with
grids of 36 rows for 35. `stem="7x7"` needs 153 pixels, not 151: on 151 its grids are 34, 16 and 7
for 35, 17 and 8."""
