"""Data: the only place that knows tensorflow-datasets and image files."""

from bnjax.data.dataset import DataError, Dataset, Split
from bnjax.data.sources import DATASETS, load_dataset

__all__ = ["DATASETS", "DataError", "Dataset", "Split", "load_dataset"]
