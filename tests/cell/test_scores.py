"""Figures that are a file each: counted by hand, found where they lie, and none of them may cost a cell its result."""

import math
from pathlib import Path
from typing import Any

import pytest

from ftmatrix.cell import result_metrics, scores
from ftmatrix.cell.metrics import is_taken
from ftmatrix.cell.run import CellRun
from ftmatrix.cell.scores import score_names, score_of
from ftmatrix.errors import ConfigError
from ftmatrix.records import Prediction
from ftmatrix.spec import ReadyCell, prepare
from ftmatrix.sweep import sweep


def prediction(label: str, answer: str) -> Prediction:
    return Prediction("text", label, answer, answer, valid=True, nll=1.0)


@pytest.fixture
def ready(quick_cell: Any) -> ReadyCell:
    (found,) = prepare([quick_cell("lr=1e-3")])
    assert isinstance(found, ReadyCell)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another folder whose files are figures."""
    found = tmp_path / "scores"
    found.mkdir()
    monkeypatch.setattr(scores, "__path__", [*scores.__path__, str(found)])
    return found


def test_matthews_correlation_is_that_of_its_definition() -> None:
    made = [prediction(*pair) for pair in [("a", "a"), ("a", "a"), ("a", "b"), ("b", "b"), ("b", "a")]]
    (true, false_negative), (false_positive, true_negative) = (2, 1), (1, 1)
    over = true * true_negative - false_positive * false_negative
    under = math.sqrt(3 * 3 * 2 * 2)
    assert score_of("matthews", made) == pytest.approx(over / under)
    assert score_of("matthews", [prediction("a", "a"), prediction("b", "a")]) == 0


def test_a_file_in_the_folder_is_a_figure_and_a_broken_one_costs_nothing(folder: Path, ready: ReadyCell) -> None:
    (folder / "right_answers.py").write_text(
        "def score(predictions):\n    return sum(p.correct for p in predictions)\n"
    )
    (folder / "undefined.py").write_text("def score(predictions):\n    return float('nan')\n")
    (folder / "broken.py").write_text("def score(predictions):\n    return 1 / 0\n")
    (folder / "empty.py").write_text("")
    result = CellRun(ready, lambda _: None).run().result
    assert result.test is not None
    metrics = result_metrics(result)
    assert metrics["right_answers"] == round(result.test.accuracy * result.test.messages)
    assert metrics["val_right_answers"] >= 0
    assert "matthews" in metrics
    assert not {"undefined", "broken", "empty"} & set(metrics)
    assert "metric broken unknown (ZeroDivisionError: division by zero)" in result.notes
    assert any(note.startswith("metric empty unknown (AttributeError:") for note in result.notes)


def test_a_figure_cant_stand_in_anothers_place(folder: Path, quick_cell: Any, tmp_path: Path) -> None:
    (folder / "accuracy.py").write_text("def score(predictions):\n    return 0.5\n")
    with pytest.raises(ConfigError, match=r"cell/scores/accuracy.py: every run has a metric 'accuracy'; give the file"):
        sweep([quick_cell("lr=1e-3")], n_jobs=1)
    assert not (tmp_path / "mlflow.db").exists()


def test_every_metric_of_a_run_is_known_as_taken(ready: ReadyCell) -> None:
    result = CellRun(ready, lambda _: None).run().result
    own = set(result_metrics(result)) - {f"{prefix}{name}" for name in score_names() for prefix in ("", "val_")}
    assert [name for name in own if not is_taken(name.partition("/")[0])] == []
