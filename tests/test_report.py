"""The report: what it says of made-up studies, as text, Markdown, JSON and plots."""

import io
import json
import math
from pathlib import Path

import numpy
import pytest
from rich.console import Console
from study import arm, failed, row

from ftmatrix.answers import compare_answers
from ftmatrix.comparison import Point
from ftmatrix.evaluation import score
from ftmatrix.records import CellResult, Outcome, Prediction
from ftmatrix.report import as_json, print_report, summarise, write_report
from ftmatrix.report.summary import Summary
from ftmatrix.tracking import Row

CLAIM = """
C1:
  statement: Full fine-tuning is stable at 5e-5.
  statistic: unstable_share
  cells: {method: full, lr: 5e-5}
"""


def result(right: float, seed: int = 0, messages: int = 200) -> CellResult:
    """A result with a share of right answers; the hard messages are the same for everyone, up to noise."""
    hardness = numpy.linspace(0, 1, messages) + numpy.random.default_rng(seed).normal(0, 0.02, messages)
    answers = ["a" if hard < right else "b" for hard in hardness]
    predictions = [Prediction(f"text {i}", "a", said, said, valid=True, nll=0.1) for i, said in enumerate(answers)]
    return CellResult(
        Outcome.COMPLETED,
        test=score("test", predictions, nll=0.1, labels=["a", "b"], common=frozenset(), pair=None),
    )


def results(row: Row) -> CellResult:
    return result(row.metrics["accuracy"], row.seed)


@pytest.fixture
def summary(tmp_path: Path) -> Summary:
    rows = arm("full", {1e-5: (0.6, "stable"), 5e-5: (0.8, "stable"), 2e-4: (0.3, "diverged")})
    rows += arm("lora", {1e-5: (0.3, "stable"), 5e-5: (0.6, "stable"), 2e-4: (0.79, "stable")})
    rows += [failed("lora", 2e-3, 0, reason="memory | ran *out* <b>here</b>")]
    (tmp_path / "claims.yaml").write_text(CLAIM)
    return summarise("made up", rows, results, tmp_path / "claims.yaml")


def printed(summary: Summary, width: int) -> str:
    file = io.StringIO()
    print_report(summary, Console(file=file, width=width))
    return file.getvalue()


def test_the_report_says_best_rates_windows_ratio_and_claims(summary: Summary) -> None:
    said = printed(summary, 240)
    assert "supported" in said
    assert "0 of 5 runs unstable at lr=5e-05" in said
    assert "≤1e-05" not in said  # 60 % is degraded against 80 %: the edge is in the grid
    assert "5e-05 to 5e-05" in said
    assert "5 diverged" in said
    assert "4 (" in said  # the LR ratio with its interval
    assert "rates: full 1e-05, 5e-05, 0.0002; lora 1e-05, 5e-05, 0.0002" not in said  # failed cells have no rate to use
    assert "out of memory: memory | ran *out* <b>here</b>" in said


@pytest.mark.parametrize("width", [80, 100, 120])
def test_nothing_is_cut_off_however_narrow_the_terminal(summary: Summary, width: int) -> None:
    said = printed(summary, width)
    assert "…" not in said
    assert all(len(line) <= width for line in said.splitlines())


def test_what_failed_is_a_row_with_its_reason(summary: Summary, tmp_path: Path) -> None:
    files = write_report(summary, tmp_path / "report")
    assert [path.name for path in files] == ["report.md", "report.json", "cells.csv", "rates.png"]
    markdown = files[0].read_text()
    assert "0 (1 failed)" in markdown
    assert "memory \\| ran \\*out\\* \\<b\\>here\\</b\\>" in markdown
    assert files[3].stat().st_size > 10_000


def test_a_program_can_read_the_report(summary: Summary) -> None:
    content = json.loads(as_json(summary))
    assert content["claims"][0]["answer"] == "supported"
    assert content["claims"][0]["numbers"] == {"unstable": 0, "runs": 5}
    full, lora = content["methods"]
    assert (full["best_lr"], lora["best_lr"]) == (5e-5, 2e-4)
    assert lora["lr_ratio_to_full"]["estimate"] == pytest.approx(4)
    assert full["window"]["high_bracketed"] is True
    assert (content["cells"], content["failed"]) == (31, 1)


def test_a_report_without_numbers_holds_null_and_no_nan() -> None:
    rows = [row("full", 1e-4, 0, 0.0, "diverged", val_nll=math.nan)]
    text = as_json(summarise("study", rows, results, None))
    assert "NaN" not in text
    json.loads(text)


def test_methods_that_get_the_same_messages_right_cant_be_told_apart() -> None:
    def point(method: str, accuracy: float) -> Point:
        return Point(1e-4, tuple(row(method, 1e-4, seed, accuracy) for seed in range(5)), ())

    near = compare_answers(point("full", 0.800), point("lora", 0.803), results)
    far = compare_answers(point("full", 0.80), point("lora", 0.60), results)
    assert near is not None
    assert far is not None
    assert not near.distinguishable
    assert far.distinguishable
    assert far.accuracy.estimate == pytest.approx(0.2, abs=0.02)
    assert far.p < 1e-6
    alone = [Point(1e-4, (row(method, 1e-4, seed),), ()) for seed, method in enumerate(("full", "lora"))]
    assert compare_answers(alone[0], alone[1], results) is None


def test_the_interval_of_a_difference_covers_at_its_nominal_rate() -> None:
    """Two equal methods on 300 messages, five seeds each: how often the interval holds 0."""
    random = numpy.random.default_rng(0)
    covered = 0
    for _ in range(60):
        chance = random.uniform(0.3, 1.0, 300)
        table = {(method, seed): random.random(300) < chance for method in ("full", "lora") for seed in range(5)}

        def answers(row: Row, table: dict[tuple[str, int], numpy.ndarray] = table) -> CellResult:
            right = table[row.method, row.seed]
            predictions = [Prediction("t", "a", "a" if one else "b", "a", valid=True, nll=0.1) for one in right]
            scored = score("test", predictions, nll=0.1, labels=["a", "b"], common=frozenset(), pair=None)
            return CellResult(Outcome.COMPLETED, test=scored)

        points = [Point(1e-4, tuple(row(method, 1e-4, seed) for seed in range(5)), ()) for method in ("full", "lora")]
        found = compare_answers(points[0], points[1], answers)
        covered += found is not None and not found.distinguishable
    assert covered >= 54
