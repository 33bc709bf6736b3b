"""The kinds of data set that a data set's YAML may name."""

from ftmatrix.data.banking77 import Banking77
from ftmatrix.data.base import DataSource
from ftmatrix.data.files import CsvFolder, JsonlFolder
from ftmatrix.data.pocket import Pocket

DATA_SCHEMAS: dict[str, type[DataSource]] = {
    "banking77": Banking77,
    "csv": CsvFolder,
    "jsonl": JsonlFolder,
    "pocket": Pocket,
}
"""What `defaults: - /schema/data@_here_: NAME` of a data set's YAML may name."""
