"""A study's results as one CSV file: all that tables, plots and claims need, without MLflow."""

import base64
import json
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftmatrix.cell import score
from ftmatrix.errors import ConfigError, first_line
from ftmatrix.machine import replacing
from ftmatrix.records import CellResult, Outcome, Prediction, Row, Stability, Verdict, as_plain, in_order, record_of
from ftmatrix.spec import unrecorded
from ftmatrix.store import NOTES_BETWEEN
from ftmatrix.study.answers import Curves, Results
from ftmatrix.study.comparison import no_settings
from ftmatrix.text import FORMULA_SIGNS, no_formula

AXES = ("method", "model", "data", "lr", "seed", "outcome", "reason", "stability")
LAST = ("notes", "run_id", "details")
DRAWN = ("loss", "grad_norm")
"""Series that are kept step by step."""
INVALID = -1
"""The answer outside the label set."""


@dataclass(frozen=True)
class ResultsFile:
    """The cells of a results.csv, read as those of a store are (see `Store.cells`, `Store.result`, `Store.curve`)."""

    path: Path
    rows: tuple[Row, ...]
    details: dict[str, str]
    """By run id: what no table shows, packed (see `_packed`); empty where it wasn't kept."""

    @property
    def study(self) -> str:
        """The study that the cells belong to.

        Raises:
            ConfigError: they belong to several, or to none.
        """
        studies = sorted({row.settings.get("study", "?") for row in self.rows})
        if len(studies) != 1:
            raise ConfigError(f"{self.path}: has cells of {len(studies)} studies, not of one: {', '.join(studies)}")
        return studies[0]

    def cells(self) -> list[Row]:
        """Every cell of the file."""
        return list(self.rows)

    def result(self, row: Row) -> CellResult:
        """What the file keeps of the result behind a row: the verdict, and the labels and answers of the test messages.

        A message's text, its constrained answer and its NLL aren't kept.
        """
        details = self._unpacked(row)
        stability = record_of(Stability, details["stability"]) if details.get("stability") else None
        test = None
        if intents := details.get("intents"):
            pairs = zip(details["labels"], details["answers"], strict=True)
            predictions = [_prediction(intents, label, answer) for label, answer in pairs]
            test = score("test", predictions, nll=math.nan, labels=intents, common=frozenset(intents), pair=None)
        return CellResult(row.outcome, row.reason, stability=stability, test=test)

    def curve(self, row: Row, series: str) -> list[tuple[int, float]]:
        """A run's steps, in order, with the value of `loss` or `grad_norm` at each; empty where they weren't kept."""
        values = self._unpacked(row).get(series, ())
        return [(step, float(value)) for step, value in enumerate(values)]

    def _unpacked(self, row: Row) -> dict[str, Any]:
        packed = self.details[row.run_id]
        try:
            details: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed))) if packed else {}
        except (zlib.error, ValueError) as error:
            raise ConfigError(f"{self.path}: details of run {row.run_id} are damaged ({first_line(error)})") from error
        return details


def read_results(path: Path) -> ResultsFile:
    """Read a results.csv.

    Raises:
        ConfigError: it isn't there, or isn't what `write_results` wrote.
    """
    import pandas

    try:
        frame = pandas.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; `ftmatrix export STUDY` writes one") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no CSV file that can be read ({first_line(error)})") from error
    if missing := [name for name in AXES if name not in frame.columns]:
        raise ConfigError(f"{path}: has no column {missing[0]!r}; `ftmatrix export STUDY` writes such a file")
    rows, details = [], {}
    for number, record in enumerate(frame.to_dict("records"), start=1):
        try:
            row = _row({str(name): _without_apostrophe(value) for name, value in record.items()}, number)
        except ValueError as error:
            raise ConfigError(f"{path}: cell {number}: {first_line(error)}") from error
        rows.append(row)
        details[row.run_id] = str(record.get("details", ""))
    return ResultsFile(path, tuple(rows), details)


def write_results(path: Path, rows: Iterable[Row], results: Results, curves: Curves) -> int:
    """Write cells as results.csv, beside those that the file has already and these don't replace; how many it has then.

    A cell that was stopped goes on some day and is left out; one that failed replaces no result.

    Raises:
        ConfigError: the file is there and isn't such a file.
    """
    import pandas

    before = read_results(path) if path.exists() else ResultsFile(path, (), {})
    records = {_identity(row): (row, before.details[row.run_id]) for row in before.rows}
    for row in rows:
        known = records.get(_identity(row))
        if row.outcome is Outcome.INTERRUPTED or (known and known[0].completed and not row.completed):
            continue
        records[_identity(row)] = (row, _packed(results(row), row, curves) if row.completed else "")
    detailed = {row.run_id: packed for row, packed in records.values()}
    table = [_record(row) | {"details": detailed[row.run_id]} for row in in_order([row for row, _ in records.values()])]
    names = sorted({name for record in table for name in record} - {*AXES, *LAST})
    text = pandas.DataFrame.from_records(table, columns=[*AXES, *names, *LAST]).to_csv(index=False)
    with replacing(path) as file:
        file.write(text.encode())
    return len(table)


def _identity(row: Row) -> tuple[object, ...]:
    """What makes two rows the same cell, on whatever machine."""
    settings = row.deciding(but=no_settings() | unrecorded())
    return (row.method, row.model, row.data, row.lr, row.seed, settings)


def _published(row: Row) -> dict[str, str]:
    return {key: value for key, value in row.settings.items() if key not in AXES and key not in unrecorded()}


def _record(row: Row) -> dict[str, object]:
    """A row as named columns. A figure that is there and no number is written nan, one that isn't there is empty."""
    axes = {axis: no_formula(getattr(row, axis)) for axis in AXES}
    settings = {f"setting.{key}": no_formula(value) for key, value in _published(row).items()}
    facts = {f"fact.{key}": no_formula(value) for key, value in row.facts.items()}
    metrics = {f"metric.{key}": repr(value) for key, value in row.metrics.items() if not key.startswith("step/")}
    notes = no_formula(NOTES_BETWEEN.join(row.notes))
    return axes | settings | facts | metrics | {"notes": notes, "run_id": row.run_id}


def _row(record: dict[str, str], number: int) -> Row:
    def named(prefix: str) -> dict[str, str]:
        return {name.removeprefix(prefix): value for name, value in record.items() if name.startswith(prefix) and value}

    return Row(
        run_id=record.get("run_id") or f"cell {number}",
        method=record["method"],
        model=record["model"],
        data=record["data"],
        lr=float(record["lr"]),
        seed=int(record["seed"]),
        outcome=Outcome(record["outcome"]),
        reason=record["reason"] or None,
        stability=Verdict(record["stability"]).value if record["stability"] else None,
        metrics={name: float(value) for name, value in named("metric.").items()},
        settings=named("setting."),
        facts=named("fact."),
        notes=tuple(filter(None, record.get("notes", "").split(NOTES_BETWEEN))),
    )


def _packed(result: CellResult, row: Row, curves: Curves) -> str:
    """Verdict, curves and test answers: JSON, compressed by zlib, as base64.

    `intents` are the label set, `labels` and `answers` the positions in it of each test message's label and of its
    answer (-1: outside it).
    """
    details: dict[str, Any] = {name: [value for _, value in curves(row, name)] for name in DRAWN}
    details["stability"] = result.stability
    if result.test:
        intents = [intent.intent for intent in result.test.intents]
        place = {intent: index for index, intent in enumerate(intents)}
        details["intents"] = intents
        details["labels"] = [place[one.label] for one in result.test.predictions]
        details["answers"] = [place[one.answer] if one.valid else INVALID for one in result.test.predictions]
    return base64.b64encode(zlib.compress(json.dumps(as_plain(details), allow_nan=False).encode(), level=9)).decode()


def _prediction(intents: list[str], label: int, answer: int) -> Prediction:
    valid = answer != INVALID
    return Prediction("", intents[label], intents[answer] if valid else "", "", valid, math.nan)


def _without_apostrophe(value: str) -> str:
    """What `no_formula` was given."""
    return value[1:] if value.startswith(tuple(f"'{sign}" for sign in FORMULA_SIGNS)) else value
