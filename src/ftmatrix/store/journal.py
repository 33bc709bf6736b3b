"""A cell's record on this disk: all that its run in MLflow is made of, kept from any death until MLflow has it.

The cell's process writes its steps and its files; whoever follows the record brings them to MLflow. The result comes
last, and in one stroke: a record without one is a cell that never ended.
"""

import json
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ftmatrix.errors import first_line
from ftmatrix.machine import replacing
from ftmatrix.records import CellResult, Step, as_plain, from_json, record_of, to_json


@dataclass(frozen=True)
class DataFacts:
    """The data set as MLflow lists it among a run's inputs."""

    name: str
    digest: str
    source: str
    profile: str


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run as it starts. `key` is the record's own name, by which its run is found again."""

    key: str
    goal: str
    """The store and the study that it belongs to."""
    name: str
    started_ms: int
    tags: dict[str, str]
    parameters: dict[str, str]
    data: DataFacts | None = None


@dataclass(frozen=True)
class TimedStep:
    """A step and when it was written down, in milliseconds since 1970: repeated, it is the same point of the curve."""

    at_ms: int
    step: Step


@dataclass(frozen=True)
class TimedResult:
    """A result, when it was there, in milliseconds since 1970, and the record that it belongs to."""

    at_ms: int
    key: str
    result: CellResult


class Journal:
    """One record. Beside the cell's process its holder alone may write it: `claim` is how to become that.

    One that is there and can't be read (`is_readable`) may hold the only copy of a result: it is left as it is.
    """

    def __init__(self, folder: Path, claimed: FileLock | None = None) -> None:
        self.folder, self._claimed = folder, claimed
        self.facts: RunFacts | None = None
        self.result: TimedResult | None = None
        self.trouble = ""
        """Why it can't be read."""
        try:
            self.facts = read_facts(folder)
            self.result = self._stored_result()
        except (OSError, ValueError) as error:
            self.trouble = first_line(error)

    @property
    def is_readable(self) -> bool:
        """Whether what lies there, if anything, could be read."""
        return not self.trouble

    @classmethod
    def in_memory(cls, facts: RunFacts) -> "Journal":
        """A record without a disk, for a cell whose folder can't be written."""
        journal = cls(Path(os.devnull) / facts.key)
        journal.facts = facts
        return journal

    @classmethod
    def claim(cls, folder: Path) -> "Journal | None":
        """The record in this folder; None while another process of this machine holds it.

        Raises:
            OSError: nothing can be written there.
        """
        (locks := folder.parent.parent / "locks").mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / folder.name, blocking=False, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            return None
        return cls(folder, lock)

    def release(self) -> None:
        """Let another process hold it."""
        if self._claimed is not None:
            self._claimed.release()

    def begin(self, facts: RunFacts, *, keep: Sequence[Path] = ()) -> None:
        """Start anew, without what an earlier run left here but `keep`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if path not in keep:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.result = None
        self.trouble = ""
        self.files.mkdir()
        self.note(facts)

    def note(self, facts: RunFacts) -> None:
        """Keep what is known of the run."""
        self.facts = facts
        _write(self.folder / "run.json", facts)

    @property
    def files(self) -> Path:
        """What becomes the run's artifacts."""
        return self.folder / "files"

    def steps(self, start: int = 0) -> list[TimedStep]:
        """The steps so far, from a place on. A last line that is still being written is left for the next call.

        Raises:
            OSError: they are there and can't be read just now.
        """
        return _steps(self.folder / "steps.jsonl")[start:]

    def end(self, result: CellResult) -> None:
        """Note a result. It stays in memory where the disk takes no more."""
        assert self.facts is not None
        timed = TimedResult(int(time.time() * 1000), self.facts.key, result)
        with suppress(OSError):
            _write(self.folder / "result.json", timed)
        self.result = timed

    def look(self) -> TimedResult | None:
        """The result, if the cell's process has left one by now.

        Raises:
            OSError, ValueError: it is there and can't be read.
        """
        self.result = self.result or self._stored_result()
        return self.result

    def delivered(self, *, complete: bool) -> None:
        """MLflow has it all. The folder of a cell that isn't complete stays, for its log and its progress."""
        with suppress(OSError):
            (self.folder / "run.json").unlink()  # first: from here on it is no record
        if complete:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _stored_result(self) -> TimedResult | None:
        text = _text(self.folder / "result.json")
        timed = from_json(TimedResult, text) if text is not None else None
        return timed if timed and self.facts and timed.key == self.facts.key else None


class CellLog:
    """What the cell's process writes into its record."""

    def __init__(self, folder: Path) -> None:
        facts = read_facts(folder)
        assert facts is not None
        self.folder, self.key = folder, facts.key
        self._unwritten: list[str] = []

    def add(self, steps: Sequence[Step]) -> None:
        """Write steps, which outlive this process from then on. Where the disk is full they wait for the next call."""
        now = int(time.time() * 1000)
        self._unwritten += [json.dumps([now, as_plain(step)], allow_nan=False) for step in steps]
        with suppress(OSError):
            self._write_down()

    def end(self, result: CellResult) -> None:
        """Leave the result; nothing follows.

        Raises:
            OSError: the disk takes no more. Asked again, it goes on.
        """
        self._write_down()
        _write(self.folder / "result.json", TimedResult(int(time.time() * 1000), self.key, result))

    def _write_down(self) -> None:
        if self._unwritten:
            with (self.folder / "steps.jsonl").open("a", encoding="utf-8") as file:
                file.write("\n".join(["", *self._unwritten, ""]))  # a line that was cut off ends here
                file.flush()
                self._unwritten = []


def _write(path: Path, record: object) -> None:
    with replacing(path) as file:
        file.write(to_json(record).encode())


def read_facts(folder: Path) -> RunFacts | None:
    """What a record's folder says of its run; None where it holds no record.

    Raises:
        OSError, ValueError: it holds one that can't be read.
    """
    text = _text(folder / "run.json")
    return None if text is None else from_json(RunFacts, text)


def _text(path: Path) -> str | None:
    """A file's text; None where there is no such file, and only then."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _steps(path: Path) -> list[TimedStep]:
    steps: list[TimedStep] = []
    for line in (_text(path) or "").split("\n")[:-1]:
        with suppress(ValueError, TypeError):  # cut off by a full disk, and written again
            at_ms, step = json.loads(line)
            if step["index"] == len(steps):
                steps.append(TimedStep(at_ms, record_of(Step, step)))
    return steps
