"""Banking77: 13,083 messages of bank customers, 77 intents."""

import json
from dataclasses import dataclass
from pathlib import Path

from ftmatrix.data.base import DataSource, RawSplits
from ftmatrix.data.dataset import Message, Messages
from ftmatrix.data.files import read_csv, read_folder
from ftmatrix.errors import DataError
from ftmatrix.machine import Repository, download
from ftmatrix.roles import resolved


@dataclass
class Banking77(DataSource):
    """Banking77 from the hub's parquet copy, or from a folder with train.csv and test.csv.

    References:
        Casanueva et al. 2020, arXiv:2003.04807.
    """

    hub_id: str = resolved("PolyAI/banking77")
    """Repository on the Hugging Face hub, as owner/name."""
    revision: str = resolved("refs/convert/parquet")
    """Branch, tag or commit of it."""

    @property
    def title(self) -> str:
        """The same data wherever they come from."""
        return self.name

    def read(self, *, fetch: bool = True) -> RawSplits:
        if self.path is not None:
            return read_folder(self.folder(), "csv", read_csv)
        repository = Repository(self.hub_id, self.revision, kind="dataset")
        snapshot = download(repository, f"data={self.name}", ("default/*.parquet",), fetch=fetch)
        source = f"{self.hub_id}@{snapshot.commit}"
        splits = {split: _read_parquet(snapshot.folder / "default" / split) for split in ("train", "test")}
        return RawSplits(source, splits["train"], splits["test"])


def _read_parquet(folder: Path) -> Messages:
    import pyarrow
    import pyarrow.parquet

    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise DataError(f"{folder}: no parquet file; name a folder with train.csv and test.csv as data.path=DIR")
    messages = []
    for file in files:
        try:
            table = pyarrow.parquet.read_table(file, columns=["text", "label"])
            features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        except (pyarrow.ArrowException, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file}: not the hub's parquet copy of Banking77 ({error})") from error
        names = features["label"]["names"]
        for text, label in zip(table["text"].to_pylist(), table["label"].to_pylist(), strict=True):
            messages.append(Message(text, names[label]))
    return tuple(messages)
