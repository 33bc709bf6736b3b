"""The packaged set of customer-support intents, so that a machine without a hub has something to classify."""

from dataclasses import dataclass, replace
from pathlib import Path

from ftmatrix.data.base import DataSource, RawSplits
from ftmatrix.data.files import read_csv, read_folder

PACKAGED = Path(__file__).parent.parent / "pocket" / "intents"


@dataclass
class Pocket(DataSource):
    """The packaged intents: train, validation and test, written for this project."""

    def read(self, *, fetch: bool = True) -> RawSplits:
        return replace(read_folder(PACKAGED, "csv", read_csv), source="packaged with ftmatrix")
