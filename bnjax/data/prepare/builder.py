"""Writing a folder with tensorflow-datasets' own builder, from examples that are made elsewhere.

Only the steps of a builder that make examples take TensorFlow. Everything else (layout, features,
order, writing) is its own, so that the folder is an ordinary one.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bnjax.extras import extra


def fed_builder(
    name: str, data_dir: Path, splits: Mapping[str, Iterator[tuple[Any, dict[str, Any]]]]
) -> Any:
    """Returns the genuine builder of a data set, fed with examples; it writes array_record files.

    Args:
        name: of the data set.
        data_dir: the root of prepared data sets.
        splits: iterators over keys and examples, by split; each is read once.
    """
    with extra("data"):
        import tensorflow_datasets as tfds

    genuine: Any = tfds.builder_cls(name)

    class Builder(genuine, skip_registration=True):  # type: ignore[call-arg]
        """The genuine one, but for the steps that take TensorFlow."""

        name = genuine.name  # otherwise taken from the class, and the folder with it

        def _split_generators(self, dl_manager: Any) -> Mapping[str, Iterator]:
            return splits

    return Builder(data_dir=str(data_dir), file_format="array_record")


def new_builder(
    name: str,
    version: str,
    data_dir: Path,
    *,
    labels: Sequence[str],
    splits: Mapping[str, Iterator[tuple[Any, dict[str, Any]]]],
) -> Any:
    """Returns a builder of a data set of images that tensorflow-datasets does not know.

    Args:
        name: of the data set.
        version: of the data set, such as "1.0.0".
        data_dir: the root of prepared data sets.
        labels: names of the classes; a class is its place among them.
        splits: iterators over keys and examples, with `file_name`, `image` and `label`, by split.
    """
    with extra("data"):
        import tensorflow_datasets as tfds

    given_name, given_version = name, version

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """The builder of this data set alone."""

        name = given_name
        VERSION = tfds.core.Version(given_version)
        pkg_dir_path = Path(__file__).parent  # where a description would be looked for

        def _info(self) -> Any:
            features = {
                "file_name": tfds.features.Text(),
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=labels),
            }
            info = tfds.core.DatasetInfo
            return info(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> Mapping[str, Iterator]:
            return splits

        def _generate_examples(self) -> Iterator:
            raise NotImplementedError  # `splits` holds the examples

    return Builder(data_dir=str(data_dir), file_format="array_record")


def build(builder: Any) -> None:
    """Writes a builder's folder, which appears under its name when all of it is written.

    Raises:
        OSError: the folder cannot be written, or stands there already.
    """
    # Its announcements on standard output say "Unknown size"; its progress is on standard error.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
