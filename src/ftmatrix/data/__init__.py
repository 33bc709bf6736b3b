"""Labelled messages: where they come from, and what is checked before anything is trained on them."""

from ftmatrix.data.banking77 import Banking77 as Banking77
from ftmatrix.data.base import DataSource as DataSource
from ftmatrix.data.dataset import INVALID as INVALID
from ftmatrix.data.dataset import Dataset as Dataset
from ftmatrix.data.dataset import Message as Message
from ftmatrix.data.files import CsvFolder as CsvFolder
from ftmatrix.data.files import JsonlFolder as JsonlFolder
from ftmatrix.data.general import general_text as general_text
from ftmatrix.data.pocket import Pocket as Pocket

SCHEMAS: dict[str, type[DataSource]] = {
    "banking77": Banking77,
    "csv": CsvFolder,
    "jsonl": JsonlFolder,
    "pocket": Pocket,
}
"""What `defaults: - /schema/data@_here_: NAME` of a data set's YAML may name."""
