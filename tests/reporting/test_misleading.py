"""What would mislead a reader is said beside the figures, or kept apart."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from rich.console import Console
from rows import row

from ftmatrix.cell import score
from ftmatrix.cell.meters import Neighbours
from ftmatrix.cell.stability import has_learned
from ftmatrix.data.files import CsvFolder
from ftmatrix.errors import ConfigError, DataError
from ftmatrix.lm import Framer, Framing
from ftmatrix.records import CellResult, Outcome, Prediction, Row
from ftmatrix.reporting import print_report
from ftmatrix.reporting.summary import summarise
from ftmatrix.serving import IntentModel
from ftmatrix.spec import Cell
from ftmatrix.study import curves
from ftmatrix.sweep import sweep

LABELS = ("card_arrival", "card", "pin_change")


def said(rows: Sequence[Row]) -> str:
    file = io.StringIO()
    results = lambda row: CellResult(Outcome.COMPLETED)  # noqa: E731
    print_report(summarise("study", rows, results, None), Console(file=file, width=400))
    return " ".join(file.getvalue().split())


def test_an_answer_that_runs_on_is_known_by_its_beginning(tokenizer: Any) -> None:
    framer = Framer(Framing(), tokenizer, LABELS)
    ids = framer.label_ids["card_arrival"]
    assert framer.begin_of([*ids[:-1], *ids[:-1]]) == "card_arrival"  # not "card", which is shorter
    assert framer.begin_of(framer.label_ids["pin_change"][:1]) is None


def test_who_answers_right_and_runs_on_has_learned() -> None:
    def evaluation(begins: str | None) -> Any:
        predictions = [
            Prediction("text", label, f"{label} and so on", label, valid=False, nll=0.1, begins=begins and label)
            for label in LABELS * 40
        ]
        return score("validation", predictions, nll=0.1, labels=LABELS, common=frozenset(LABELS), pair=None)

    assert evaluation("it does").unended_rate == 1.0
    assert has_learned(evaluation("it does")) is True
    assert has_learned(evaluation(None)) is False


def test_answers_that_dont_end_are_told_with_a_way_out() -> None:
    rows = [row("lora", 1e-3, seed, 0.02, unended_rate=0.97, accuracy_constrained=0.6) for seed in range(3)]
    found = said([*rows, *(row("full", 1e-3, seed, 0.7, unended_rate=0.01) for seed in range(3))])
    assert "97.0 % of the answers of lora at lr 0.001 begin with a label and don't end there" in found
    assert "within the label set it is 60.0 %" in found
    assert "answers of full at" not in found


def test_another_end_is_trained_and_answered(quick_cell: Callable[..., Cell]) -> None:
    cell = quick_cell("lr=5e-3", 'framing.end="\\n"', "data.test_limit=40", "evaluation.forgetting=false")
    (ended,) = sweep([cell], n_jobs=1)
    assert ended is not None
    assert ended.reason is None
    assert ended.metrics["invalid_rate"] < 0.5


def test_an_end_of_several_tokens_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"framing.end='the end of it': must be one token"):
        Framer(Framing(end="the end of it"), tokenizer, LABELS)
    with pytest.raises(ConfigError, match=r"framing.end is empty"):
        Framing(end="").check()


def test_versions_of_the_data_are_kept_apart() -> None:
    def runs(digest: str, seeds: Sequence[int]) -> list[Row]:
        return [row("full", 1e-3, seed, facts={"data.digest": digest}) for seed in seeds]

    rows = [*runs("a" * 40, (0, 1)), *runs("b" * 40, (2,))]
    assert [(curve.context.title, curve.seeds) for curve in curves(rows)] == [
        ("pocket-1m data version=aaaaaaaa", (0, 1)),
        ("pocket-1m data version=bbbbbbbb", (2,)),
    ]
    assert said(rows).startswith("In short The runs saw 2 versions of the data 'pocket' under the same settings")
    assert len(curves(runs("a" * 40, (0, 1, 2)))) == 1


def test_few_validation_messages_are_told() -> None:
    assert "Rates and verdicts go by 38 validation messages, of which one is 2.6 points" in said(
        [row("full", 1e-3, 0, val_messages=38.0)]
    )
    assert "Rates and verdicts go by" not in said([row("full", 1e-3, 0, val_messages=310.0)])


def test_runs_that_learned_nothing_or_are_undecided_are_not_called_stable() -> None:
    found = said([row("full", 1e-3, 0, 0.01, "not_learned"), row("full", 1e-2, 0, 0.5, "undecided")])
    assert "no run unstable; 1 learned nothing; 1 undecided, by too few validation messages" in found


def test_times_beside_other_work_are_not_compared() -> None:
    alone = [row(method, 1e-3, 0, neighbour_cores=0.05) for method in ("full", "lora")]
    assert "Fastest to train" in said(alone)
    found = said([*alone[:1], row("lora", 1e-3, 0, neighbour_cores=1.02)])
    assert "Time isn't compared: while one of these runs trained, other programs kept 1.0 CPU cores busy." in found
    assert "Fastest to train" not in found


def test_neighbours_are_counted_in_cores() -> None:
    counted = Neighbours()
    sum(index * index for index in range(2_000_000))  # own work is no neighbour's
    cores = counted.cores()
    assert cores is not None
    assert cores >= 0


def test_notes_of_runs_stand_in_the_report() -> None:
    note = "3 message(s) cut to 16 tokens (framing.max_length)"
    found = said([row(method, 1e-3, seed, notes=(note,)) for method in ("full", "lora") for seed in (0, 1)])
    assert "Notes of the runs" in found
    assert f"{note} full 2, lora 2" in found


def test_a_note_stands_under_the_table(quick_cell: Callable[..., Cell], capsys: pytest.CaptureFixture[str]) -> None:
    sweep([quick_cell("framing.max_length=24", "data.limit=40", "data.test_limit=20")], n_jobs=1)
    assert "message(s) cut to 24 tokens (framing.max_length)" in capsys.readouterr().out.split("Note: ")[1]


def test_data_sets_of_the_same_messages_are_told(
    quick_cell: Callable[..., Cell], data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in data_folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    few = ("data.limit=40", "data.test_limit=20")
    sweep([quick_cell(*few), quick_cell(f"data.path={copy}", *few)], n_jobs=1)
    assert "hold the same messages: cells that differ in nothing else run once" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["val", "dev", "valid", "validation"])
def test_a_validation_split_is_found_by_its_usual_names(name: str, data_folder: Path) -> None:
    (data_folder / f"{name}.csv").write_bytes((data_folder / "test.csv").read_bytes())
    dataset = CsvFolder(name="csv", path=str(data_folder)).load()
    assert len(dataset.validation) == len(dataset.test)
    (data_folder / "other.csv").write_bytes(b"")
    (data_folder / ("val.csv" if name != "val" else "dev.csv")).write_bytes(b"text,category\n")
    with pytest.raises(DataError, match="are there, and only one can be the validation split"):
        CsvFolder(name="csv", path=str(data_folder)).load()


def test_the_server_names_the_empty_message() -> None:
    model = object.__new__(IntentModel)
    with pytest.raises(MlflowException, match=r"inputs\[1\]: the message is empty"):
        model.predict(["where is my card?", "  "])
    with pytest.raises(MlflowException, match="there is no message"):
        model.predict([])
