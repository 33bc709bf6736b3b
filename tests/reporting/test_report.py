"""The report: what it says of made-up studies, as text, Markdown, JSON and plots."""

import io
import json
import math
import re
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy
import pytest
from matplotlib.patches import Rectangle
from rich.console import Console
from rows import arm, failed, row

from ftmatrix.cell import score
from ftmatrix.records import CellResult, Outcome, Prediction, Row, Stability, Verdict
from ftmatrix.reporting import as_json, print_report
from ftmatrix.reporting.details import Confusion, read_details
from ftmatrix.reporting.plots import draw
from ftmatrix.reporting.plots.style import Plot, colour, line_style, marker, named
from ftmatrix.reporting.summary import Summary, summarise
from ftmatrix.reporting.writing import write_report
from ftmatrix.study import Point, compare_answers

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
    broke = row.stability == "diverged"
    stability = Stability(Verdict.DIVERGED, 7, "loss", 50.0) if broke else Stability(Verdict.STABLE)
    return replace(result(row.metrics["accuracy"], row.seed), stability=stability)


def made_up(folder: Path) -> Summary:
    """A study of full fine-tuning and LoRA with a claim and a failure. Its claims are written to `folder`."""
    rows = arm("full", {1e-5: (0.6, "stable"), 5e-5: (0.8, "stable"), 2e-4: (0.3, "diverged")})
    rows += arm("lora", {1e-5: (0.3, "stable"), 5e-5: (0.6, "stable"), 2e-4: (0.79, "stable")})
    rows += [failed("lora", 2e-3, 0, reason="memory | ran *out* <b>here</b>")]
    (folder / "claims.yaml").write_text(CLAIM)
    return summarise("made up", rows, results, folder / "claims.yaml")


@pytest.fixture
def summary(tmp_path: Path) -> Summary:
    return made_up(tmp_path)


def printed(summary: Summary, width: int) -> str:
    file = io.StringIO()
    print_report(summary, Console(file=file, width=width))
    return file.getvalue()


def test_the_report_says_best_rates_windows_ratio_and_claims(summary: Summary) -> None:
    said = printed(summary, 240)
    assert "supported" in said
    assert "0 of 5 runs unstable at lr=5e-05" in said
    assert "≤1e-05" not in said  # 60 % is degraded against 80 %: the edge is in the grid
    assert "5e-05 alone" in said
    assert "5 diverged" in said
    assert "4 (" in said  # the LR ratio with its interval
    assert "rates: full 1e-05, 5e-05, 0.0002; lora 1e-05, 5e-05, 0.0002" not in said  # failed cells have no rate to use
    assert "memory | ran *out* <b>here</b>" in said
    assert "1 out of memory" in said


@pytest.mark.parametrize("width", [80, 100, 120])
def test_nothing_is_cut_off_however_narrow_the_terminal(summary: Summary, width: int) -> None:
    said = printed(summary, width)
    assert "…" not in said
    assert all(len(line) <= width for line in said.splitlines())


def curve(row: Row, series: str) -> list[tuple[int, float]]:
    """Loss and gradient norm of a run that meets a number that isn't finite in step 30."""
    values = 3 * numpy.exp(-numpy.arange(40) / 10) + 0.1
    return [(step, math.inf if step == 30 else float(value)) for step, value in enumerate(values)]


def written(summary: Summary, folder: Path) -> dict[str, Path]:
    return {path.name: path for path in write_report(summary, read_details(summary, results, curve), folder)}


def test_what_failed_is_a_row_with_its_reason(summary: Summary, tmp_path: Path) -> None:
    files = written(summary, tmp_path / "report")
    assert list(files)[:4] == ["report.html", "report.md", "report.json", "cells.csv"]
    markdown = files["report.md"].read_text()
    assert "0 (1 failed)" in markdown
    assert "memory \\| ran \\*out\\* \\<b\\>here\\</b\\>" in markdown
    assert "memory | ran *out* &lt;b&gt;here&lt;/b&gt;" in files["report.html"].read_text()


PLOTS = ("rates", "training", "memory", "trade-offs", "confusion", "difference")


def test_every_plot_is_drawn_into_the_page_and_beside_it(summary: Summary, tmp_path: Path) -> None:
    files = written(summary, tmp_path)
    page = files["report.html"].read_text()
    assert [name for name in files if name.endswith(".png")] == [f"{plot}-pocket-1m.png" for plot in PLOTS]
    assert page.count("<svg") == len(PLOTS)
    for text in ("learning rate", "optimizer step", "peak memory of training (MiB)", "Pareto front", "invalid"):
        assert f">{text}</text>" in page
    assert all(f"({plot}-pocket-1m.png)" in files["report.md"].read_text() for plot in PLOTS)


def drawn(rows: list[Row]) -> dict[str, Plot]:
    details = read_details(summarise("made up", rows, results, None), results, curve)
    return {plot.name.removesuffix("-pocket-1m"): plot for plot in draw(details)}


def lines(plot: Plot, label: str) -> list[tuple[float, float]]:
    found = [line for axes in plot.figure.axes for line in axes.get_lines() if line.get_label() == label]
    starts = [numpy.asarray(line.get_xydata())[0].tolist() for line in found]
    return [(x, y) for x, y in starts]


def test_plots_mark_what_broke_a_run_and_what_was_forecast() -> None:
    rows = arm("full", {1e-4: (0.8, "stable"), 1e-3: (0.2, "diverged")})
    plots = drawn(rows)
    assert lines(plots["training"], "_trigger") == [(7, dict(curve(rows[-1], "loss"))[7])]
    assert lines(plots["memory"], "forecast") == [(5.2e6 / 2**20, 0)]
    bars = [bar for bar in plots["memory"].figure.axes[0].patches if isinstance(bar, Rectangle)]
    assert sum(bar.get_width() for bar in bars) == pytest.approx(5.0e6 / 2**20)
    forgetting = plots["trade-offs"].figure.axes[2]
    assert forgetting.get_xlabel() == "perplexity on general text, after over before"
    assert len(forgetting.collections) == 3  # two rates, and the cross over the unstable one


def test_a_run_without_a_number_is_seen_and_spoils_no_other() -> None:
    rows = arm("full", {1e-4: (0.8, "stable"), 1e-3: (0.5, "stable")})
    rows += [row("full", 1e-2, seed, 0.1, "diverged", val_nll=math.nan, forgetting=math.nan) for seed in range(5)]
    plots = drawn(rows)
    losses = plots["rates"].figure.axes[1]
    heights = numpy.concatenate([numpy.asarray(marks.get_offsets())[:, 1] for marks in losses.collections])
    assert (heights == 0.98).sum() == 5
    said = io.StringIO()
    print_report(summarise("made up", rows, results, None), Console(file=said, width=200))
    assert "not finite" in said.getvalue()
    assert "nan" not in said.getvalue()


@pytest.mark.parametrize("other", [6, 7, 13])
def test_arms_beyond_the_colours_look_different(other: int) -> None:
    looks = {(colour(index), marker(index), line_style(index)) for index in range(other + 1)}
    assert len(looks) == other + 1


def test_files_of_titles_that_read_alike_are_apart() -> None:
    titles = ["a-b", "a--b", "a b", "a/b", "x" * 200, "x" * 201]
    assert len({named("rates", title) for title in titles}) == len(titles)
    assert max(len(named("rates", title)) for title in titles) < 140


class Page(HTMLParser):
    """Collects where a page points to, and checks that its tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.goals: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.goals += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href", "action")]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)


def test_the_page_fetches_nothing_and_has_no_markup_but_its_own(summary: Summary, tmp_path: Path) -> None:
    text = written(summary, tmp_path)["report.html"].read_text()
    page = Page(text)
    assert not page.open
    assert page.goals
    assert all(goal.startswith(("#", "data:image/png;base64,")) for goal in page.goals)
    assert "<script" not in text
    assert not re.search(r"url\((?!#)", text)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", 'a $x$ & "b"', "=1+1", "a|b"])
def test_names_that_users_choose_are_text(name: str, tmp_path: Path) -> None:
    rows = [row(method, 1e-3, seed, model=name) for method in ("full", "lora") for seed in range(3)]
    files = written(summarise(name, rows, results, None), tmp_path / "report")
    page = files["report.html"].read_text()
    assert escape(name, quote=False) in page or escape(name) in page
    assert "<script" not in page
    assert not Page(page).open


def test_the_answer_stands_first(summary: Summary) -> None:
    said = " ".join(printed(summary, 400).split())
    assert said.startswith(
        "In short 31 cells; 1 without a result (1 out of memory); 1 claim, asked of each model: 1 supported; "
        "5 of 30 runs unstable. Data: pocket, 500 test messages."
    )
    assert "Most accurate: full at lr 5e-05, 80.0" in said
    assert "Behind it: lora at lr 0.0002 by 0.9 (" in said
    assert "validation accuracy over nine tenths of the best): full 5e-05 alone; lora 0.0002, perhaps above it." in said


def test_one_seed_is_said_to_be_one() -> None:
    rows = [row("full", 1e-3, 0, 0.8), row("lora", 1e-3, 0, 0.4)]
    said = " ".join(printed(summarise("study", rows, results, None), 400).split())
    assert "One seed cannot tell" in said
    assert "Behind it: lora at lr 0.001 by 40.0 (" in said


def test_a_rate_that_validation_doesnt_tell_from_the_best_is_named() -> None:
    rows = [row("full", lr, 0, accuracy) for lr, accuracy in ((1e-3, 0.700), (1e-2, 0.704), (1e-1, 0.5))]
    said = " ".join(printed(summarise("study", rows, results, None), 400).split())
    assert (
        "full at lr 0.01, 70.4 % of the test messages, forgetting 1.5. By validation its rate might as well be 0.001 ("
        in said
    )


def test_the_report_says_where_it_was_measured() -> None:
    facts = {"device": "cpu (2 cores)", "precision": "fp32", "version.torch": "2.13.0", "memory.counts": "resident set"}
    said = printed(summarise("study", [row("full", 1e-3, 0, facts=facts)], results, None), 400)
    assert "Measured on cpu (2 cores), in fp32, torch 2.13.0." in said
    assert "Peak memory is resident set." in said


def test_times_of_a_shared_machine_are_not_compared() -> None:
    rows = [row(method, 1e-3, seed, steps=100.0) for method in ("full", "lora") for seed in range(3)]
    steady = " ".join(printed(summarise("made up", rows, results, None), 400).split())
    assert "Fastest to train" in steady
    rows += [row("lora", 1e-2, 0, steps=100.0, seconds_train=21.0)]
    shared = " ".join(printed(summarise("made up", rows, results, None), 400).split())
    assert "steps of lora took up to 2.1 times as long in one run as in another" in shared
    assert "Fastest to train" not in shared
    ended_early = [row("lora", 1e-2, 0, steps=10.0, seconds_train=1.0)]
    assert "Fastest to train" in printed(summarise("made up", rows[:-1] + ended_early, results, None), 400)


def test_costs_of_few_seeds_are_no_less_different() -> None:
    rows = [row("full", 1e-3, seed, peak_bytes_train=1e8) for seed in range(3)]
    rows += [row("lora", 1e-3, 0, peak_bytes_train=1e9)]
    said = " ".join(printed(summarise("made up", rows, results, None), 400).split())
    assert "lora 954 MiB (10 times as much)" in said


def test_the_answer_doesnt_contradict_itself_where_arms_have_other_seeds() -> None:
    rows = [row("full", 1e-3, seed, accuracy) for seed, accuracy in enumerate((0.6, 0.95, 0.95))]
    rows += [row("lora", 1e-3, 0, 0.8)]
    said = " ".join(printed(summarise("made up", rows, results, None), 400).split())
    assert "Ahead of it on the seeds that both have: lora at lr 0.001" in said
    assert "Behind it" not in said


def test_a_study_of_failures_says_nothing_of_stability() -> None:
    summary = summarise("made up", [failed("full", 1e-3, seed) for seed in range(2)], results, None)
    assert "stable" not in printed(summary, 400).split("Side by side")[0]
    assert "0, 1" in printed(summary, 400).split("Without a result")[1]


def test_what_cant_be_told_apart_is_said_to_be_so() -> None:
    def cost(method: str, seed: int, peak: float, seconds: float) -> Any:
        return row(method, 1e-3, seed, peak_bytes_train=peak * 2**20, seconds_train=seconds)

    rows = [cost("full", seed, 400 + seed, 10.0) for seed in range(3)]
    rows += [cost("lora", seed, 200 + seed, 10.2) for seed in range(3)]
    said = " ".join(printed(summarise("study", rows, results, None), 400).split())
    assert "Not distinguishable from it: lora at lr 0.001, 80.0 ± 0.0 %" in said
    assert "Least memory in training: lora, 201 MiB; full 401 MiB (2 times as much)." in said
    assert "Fastest to train: full, 10.0 s; lora 10.2 s (about the same)." in said


def test_pairs_that_are_taken_for_one_another_are_counted_both_ways() -> None:
    confusion = Confusion("full", ("a", "b", "c"), numpy.array([[5, 3, 0, 2], [1, 9, 0, 0], [0, 1, 9, 0]]))
    first, second = confusion.worst_pairs(5)
    assert (first.intents, first.answers, first.messages) == (("a", "b"), 4, 20)
    assert (second.intents, second.answers, second.messages) == (("b", "c"), 1, 20)
    assert confusion.shares[0].tolist() == [0.5, 0.3, 0.0, 0.2]


def test_a_program_can_read_the_report(summary: Summary) -> None:
    content = json.loads(as_json(summary))
    assert content["claims"][0]["answer"] == "supported"
    assert content["claims"][0]["numbers"] == {
        "unstable": 0,
        "runs": 5,
        "low": 0.0,
        "high": pytest.approx(0.4345, abs=1e-4),
    }
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


def test_a_study_of_failures_alone_has_a_report_without_plots(tmp_path: Path) -> None:
    summary = summarise("study", [failed("full", 1e-3, 0), failed("lora", 1e-3, 0)], results, None)
    assert [name for name in written(summary, tmp_path) if name.endswith(".png")] == []
