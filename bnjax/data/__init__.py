"""Data: the only place that knows tensorflow-datasets and image files."""

from bnjax.data.arrays import ArraySplit, in_memory
from bnjax.data.data_set import DataError, DataSet, Split
from bnjax.data.sets import DATA_SETS, open_data

__all__ = ["DATA_SETS", "ArraySplit", "DataError", "DataSet", "Split", "in_memory", "open_data"]
