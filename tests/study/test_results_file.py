"""results.csv: a report of it is the store's own, and what is recorded in the repository can be rebuilt."""

import csv
import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from ftmatrix.cli import run
from ftmatrix.errors import ConfigError
from ftmatrix.records import Outcome
from ftmatrix.reporting import make_report
from ftmatrix.store import Store
from ftmatrix.study import read_results, write_results

ROOT = Path(__file__).parents[2]
RECORDED = sorted(ROOT.glob("experiments/*/results.csv"))
GRID = [
    "method=full,lora",
    "lr=1e-3,1e-2",
    "data.limit=60",
    "data.test_limit=40",
    "training.epochs=1",
    "study=recorded",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, messages_folder: Path) -> Path:
    """A folder with a study's store, its results.csv and its report. One cell has no result."""
    folder = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        assert run([*GRID, "data=csv", f"data.path={messages_folder}", "report=false"]) == 0
        assert run(["study=recorded", "model=local", "model.path=nowhere", "report=false"]) == 1
        assert run(["export", "recorded"]) == 0
        assert run(["report", "recorded"]) == 0
        (folder / "reports" / "recorded").rename(folder / "of_the_store")
    return folder


def test_a_report_of_the_file_is_the_stores_own(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/at/all.db")
    assert run(["report", "--from", str(place / "results.csv")]) == 0
    made = tmp_path / "reports" / "recorded"
    expected = sorted(path.name for path in (place / "of_the_store").iterdir())
    assert sorted(path.name for path in made.iterdir()) == expected
    for name in expected:
        assert (made / name).read_bytes() == (place / "of_the_store" / name).read_bytes(), name


def test_the_file_names_no_folder(place: Path) -> None:
    text = (place / "results.csv").read_text()
    assert str(place) not in text
    assert "data.path" not in text


def test_what_is_exported_again_replaces_and_adds(place: Path, tmp_path: Path) -> None:
    store = Store(f"sqlite:///{place / 'mlflow.db'}", "recorded", create=False)
    path = tmp_path / "results.csv"
    rows = store.cells()
    first, second, *_ = [row for row in rows if row.completed]
    assert write_results(path, [first], store.result, store.curve) == 1
    assert write_results(path, [second, first], store.result, store.curve) == 2
    other = dataclasses.replace(first, seed=7, run_id="another", metrics=first.metrics | {"nll": float("nan")})
    assert (
        write_results(path, [other], lambda row: store.result(first), lambda row, name: store.curve(first, name)) == 3
    )
    found = read_results(path)
    assert {row.seed for row in found.cells()} == {0, 7}
    again = next(row for row in found.cells() if row.run_id == first.run_id)
    assert again.metrics == {name: value for name, value in first.metrics.items() if not name.startswith("step/")}
    assert again.facts == first.facts
    assert found.curve(again, "loss") == store.curve(first, "loss")
    answers = found.result(again).test
    stored = store.result(first).test
    assert answers is not None
    assert stored is not None
    assert answers.confusion == stored.confusion


def test_a_store_without_its_files_keeps_what_it_has(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody copied the database alone."""
    shutil.copy(place / "mlflow.db", tmp_path / "mlflow.db")
    store = Store(f"sqlite:///{tmp_path / 'mlflow.db'}", "recorded", create=False)
    row = next(row for row in store.cells() if row.completed)
    monkeypatch.setattr(Store, "cells", lambda _: [dataclasses.replace(row, artifact_uri=str(tmp_path / "gone"))])
    (kept,) = store.cells()
    path = tmp_path / "results.csv"
    assert write_results(path, [kept], store.result, store.curve) == 1
    assert f"run {row.run_id}: {tmp_path / 'gone'}/result.json isn't there" in capsys.readouterr().err
    found = read_results(path)
    (again,) = found.cells()
    assert again.metrics["accuracy"] == row.metrics["accuracy"]
    assert found.curve(again, "loss") == store.curve(row, "loss")
    assert found.result(again).test is None
    assert make_report(found, tmp_path / "report")[1]
    with pytest.raises(ConfigError, match="isn't there"):
        store.whole_result(kept)


def test_what_is_no_result_replaces_none(place: Path, tmp_path: Path) -> None:
    store = Store(f"sqlite:///{place / 'mlflow.db'}", "recorded", create=False)
    path = tmp_path / "results.csv"
    first, second, *_ = [row for row in store.cells() if row.completed]
    assert write_results(path, [first], store.result, store.curve) == 1
    crashed = dataclasses.replace(first, outcome=Outcome.CRASHED, run_id="later")
    stopped = dataclasses.replace(second, outcome=Outcome.INTERRUPTED)
    assert write_results(path, [crashed, stopped], store.result, store.curve) == 1
    assert [row.run_id for row in read_results(path).cells()] == [first.run_id]
    assert write_results(path, [dataclasses.replace(crashed, seed=7)], store.result, store.curve) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.unlink(), "no such file; `ftmatrix export STUDY` writes one"),
        (lambda path: path.write_text("a,b\n1,2\n"), "has no column 'method'"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "no CSV file that can be read"),
        (
            lambda path: path.write_text(path.read_text().replace(",completed,", ",complete,")),
            "cell 1: 'complete' is not",
        ),
        (lambda path: spoil_details(path), "are damaged"),
    ],
)
def test_a_file_that_is_none_is_told_in_a_line(
    place: Path, tmp_path: Path, change: object, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.csv"
    shutil.copy(place / "results.csv", path)
    change(path)  # type: ignore[operator]
    assert run(["report", "--from", str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def spoil_details(path: Path) -> None:
    with path.open(newline="") as file:
        records = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(record | {"details": record["details"][:40]} for record in records)


@pytest.mark.parametrize("words", [["report", "pocket", "--from=x.csv"], ["report", "--from"], ["export", "--too=x"]])
def test_a_wrong_word_is_told(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.parent.name)
def test_the_recorded_tables_can_be_rebuilt(path: Path, tmp_path: Path) -> None:
    _, files = make_report(read_results(path), tmp_path)
    report = next(file for file in files if file.suffix == ".md").read_text(encoding="utf-8")
    page = path.with_name("README.md").read_text(encoding="utf-8")
    (side_by_side,) = re.findall(r"^## Side by side\n\n((?:\|.*\n)+)", report, re.MULTILINE)
    assert side_by_side in page
