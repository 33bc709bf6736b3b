"""CSV and JSON-lines folders: train and test, and validation where there is one."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftmatrix.data.base import DataSource, RawSplits
from ftmatrix.data.dataset import Message, Messages
from ftmatrix.errors import DataError
from ftmatrix.roles import resolved

csv.field_size_limit(1_000_000)

VALIDATION = ("validation", "valid", "val", "dev")
"""What a validation split may be called."""


def read_folder(folder: Path, suffix: str, read: Callable[[Path], Messages]) -> RawSplits:
    """Read train, test and, where it is there, validation of one kind of file.

    Raises:
        DataError: train or test is missing, or a file is malformed.
    """
    for split in ("train", "test"):
        if not (folder / f"{split}.{suffix}").is_file():
            raise DataError(f"{folder}: no {split}.{suffix}; it must hold train.{suffix} and test.{suffix}")
    validations = [path for name in VALIDATION if (path := folder / f"{name}.{suffix}").is_file()]
    if len(validations) > 1:
        names = " and ".join(path.name for path in validations)
        raise DataError(f"{folder}: {names} are there, and only one can be the validation split; move the others away")
    return RawSplits(
        source=str(folder),
        train=read(folder / f"train.{suffix}"),
        test=read(folder / f"test.{suffix}"),
        validation=read(validations[0]) if validations else None,
    )


def read_csv(path: Path, *, text_column: str = "text", label_column: str = "category") -> Messages:
    """The messages of a CSV file with a header row.

    Raises:
        DataError: a column is missing, a row is short or long, or the file is no UTF-8 CSV.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or []
            for column in (text_column, label_column):
                if column not in columns:
                    key = "text_column" if column == text_column else "label_column"
                    raise DataError(f"{path}: no column {column!r} among {', '.join(columns)}; name it with data.{key}")
            messages = []
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{path}, line {reader.line_num}: not {len(columns)} fields; quote commas in texts")
                messages.append(Message(row[text_column], row[label_column]))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: malformed CSV ({error})") from error
    return tuple(messages)


def read_jsonl(path: Path) -> Messages:
    """The messages of a JSON-lines file, as hosted fine-tuning services take them.

    A line is `{"prompt": …, "completion": …}`, or `{"messages": [{"role": "user", …}, {"role": "assistant", …}]}`
    with an optional system message first, which is put before the user's text.

    Raises:
        DataError: a line is of neither form, or the file is no UTF-8.
    """
    messages = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    messages.append(_message(line, f"{path}, line {number}"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    return tuple(messages)


def _message(line: str, where: str) -> Message:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    match record:
        case {"prompt": str(prompt), "completion": str(completion)}:
            return Message(prompt, completion.strip())
        case {"messages": list(turns)}:
            return _from_chat(turns, where)
        case _:
            raise DataError(f"{where}: needs texts 'prompt' and 'completion', or a list 'messages'")


def _from_chat(turns: list[Any], where: str) -> Message:
    match turns:
        case [{"role": "user", "content": str(text)}, {"role": "assistant", "content": str(label)}]:
            return Message(text, label.strip())
        case [
            {"role": "system", "content": str(instruction)},
            {"role": "user", "content": str(text)},
            {"role": "assistant", "content": str(label)},
        ]:
            return Message(f"{instruction}\n\n{text}", label.strip())
        case _:
            raise DataError(f"{where}: 'messages' must be an optional system, one user and one assistant turn, as text")


@dataclass
class CsvFolder(DataSource):
    """A folder with train.csv and test.csv (and validation.csv, if there is one)."""

    text_column: str = resolved("text")
    """Column of the messages."""
    label_column: str = resolved("category")
    """Column of the intents."""

    def read(self, *, fetch: bool = True) -> RawSplits:
        return read_folder(
            self.folder(),
            "csv",
            lambda path: read_csv(path, text_column=self.text_column, label_column=self.label_column),
        )


@dataclass
class JsonlFolder(DataSource):
    """A folder with train.jsonl and test.jsonl (and validation.jsonl, if there is one)."""

    def read(self, *, fetch: bool = True) -> RawSplits:
        return read_folder(self.folder(), "jsonl", read_jsonl)
