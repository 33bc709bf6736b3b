"""Claims: each answer from made-up runs, and the file they are written in."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rows import SPREAD, arm, failed, row

from ftmatrix.cell import score
from ftmatrix.errors import ConfigError
from ftmatrix.records import CellResult, Outcome, Prediction, Row
from ftmatrix.spec import experiments_root
from ftmatrix.study import Answer, Finding, curves, judge, read_claims
from ftmatrix.study.claims.base import Cells, Claim
from ftmatrix.study.claims.instability import Destabilised, ToleratesHigherRates, UnstableShare, WiderWindow
from ftmatrix.study.claims.measures import AccuracyAtLeast, MemoryMultiple, MostConfusedPair, rank_pairs

LOW, HIGH = 5e-5, 2e-4

C1 = UnstableShare(statement="C1", cells=Cells("full", LOW))
C2 = Destabilised(statement="C2", cells=Cells("full", HIGH), against=Cells("full", LOW), requires="C1")
C3A = ToleratesHigherRates(statement="C3a", cells=Cells("lora", HIGH), against=Cells("full", HIGH))
C3B = WiderWindow(statement="C3b", cells=Cells("lora"), against=Cells("full"))
C4 = AccuracyAtLeast(statement="C4", cells=Cells("full", "best"), threshold=0.9)
C6 = MemoryMultiple(statement="C6", cells=Cells("full", LOW))


def no_results(_: Row) -> CellResult:
    raise AssertionError("this claim needs no more than the rows")


def answers(claims: dict[str, Claim], rows: list[Row], results: Any = no_results) -> dict[str, Finding]:
    return {finding.claim: finding for finding in judge(claims, curves(rows), results)}


def answer(claim: Claim, rows: list[Row], results: Any = no_results) -> Finding:
    return answers({"it": claim}, rows, results)["it"]


def runs(lr: float, unstable: int, of: int, *, method: str = "full", accuracy: float = 0.8) -> list[Row]:
    return [
        row(method, lr, seed, accuracy + SPREAD[seed % 5], "diverged" if seed < unstable else "stable")
        for seed in range(of)
    ]


@pytest.mark.parametrize(
    ("unstable", "of", "expected"),
    [
        (0, 5, Answer.SUPPORTED),
        (1, 5, Answer.INCONCLUSIVE),
        (2, 5, Answer.CONTRADICTED),
        (0, 4, Answer.INCONCLUSIVE),
        (4, 4, Answer.INCONCLUSIVE),
    ],
)
def test_c1_counts_unstable_runs_and_asks_for_enough(unstable: int, of: int, expected: Answer) -> None:
    assert answer(C1, runs(LOW, unstable, of)).answer is expected


def test_a_claim_about_runs_that_arent_there_is_open() -> None:
    found = answer(C1, runs(LOW, 0, 5, method="lora"))
    assert (found.answer, found.because) == (Answer.INCONCLUSIVE, "the study has no run with method=full yet")
    assert "no finished run of full at lr=5e-05" in answer(C1, runs(HIGH, 0, 5)).because


def test_failed_cells_are_named_and_are_no_runs() -> None:
    found = answer(C1, [*runs(LOW, 0, 4), failed("full", LOW, 4)])
    assert found.answer is Answer.INCONCLUSIVE
    assert found.because == "4 run(s) at lr=5e-05, 1 failed; the claim asks for 5"


def both(claims: dict[str, Claim], low: int, high: int, of: int = 5, **options: Any) -> Finding:
    rows = runs(LOW, low, of) + runs(HIGH, high, of, **options)
    return answers({"C1": C1, **claims}, rows)["C2"]


def test_c2_is_supported_when_the_high_rate_breaks_down_and_the_low_one_doesnt() -> None:
    found = both({"C2": C2}, low=0, high=5)
    assert found.answer is Answer.SUPPORTED
    assert found.p is not None
    assert found.p == pytest.approx(1 / math.comb(10, 5))
    assert "5 of 5 at lr=0.0002, 0 of 5 at lr=5e-05" in found.because


def test_c2_needs_c1() -> None:
    found = both({"C2": C2}, low=1, high=5)
    assert found.answer is Answer.INCONCLUSIVE
    assert "needs C1" in found.because


def test_c2_counts_a_run_that_only_lost_accuracy() -> None:
    assert both({"C2": C2}, low=0, high=0, accuracy=0.5).answer is Answer.SUPPORTED


def test_c2_is_contradicted_by_equivalence_and_not_by_silence() -> None:
    assert both({"C2": C2}, low=0, high=0).answer is Answer.CONTRADICTED
    assert both({"C2": C2}, low=0, high=0, accuracy=0.78).answer is Answer.INCONCLUSIVE


def test_three_seeds_never_decide_c2() -> None:
    found = both({"C2": C2}, low=0, high=3, of=3)
    assert found.answer is Answer.INCONCLUSIVE
    assert "asks for 5" in found.because


def test_p_values_are_adjusted_for_the_number_of_tests() -> None:
    again = {f"C2 {number}": C2 for number in range(12)}
    rows = runs(LOW, 0, 5) + runs(HIGH, 4, 5, accuracy=0.79)
    alone = answers({"C1": C1, "C2": C2}, rows)["C2"]
    among = answers({"C1": C1, **again}, rows)["C2 0"]
    assert (alone.answer, among.answer) == (Answer.SUPPORTED, Answer.INCONCLUSIVE)
    assert alone.p == among.p == pytest.approx(0.0238, abs=1e-4)
    assert among.p_adjusted == pytest.approx(12 * 0.0238, abs=2e-3)
    assert "after Holm" in among.because


FULL = {1e-5: (0.6, "stable"), LOW: (0.8, "stable"), HIGH: (0.3, "diverged"), 1e-3: (0.1, "diverged")}
LORA = {1e-5: (0.3, "stable"), LOW: (0.6, "stable"), HIGH: (0.8, "stable"), 1e-3: (0.1, "diverged")}


def test_c3a_takes_both_fewer_unstable_runs_and_a_higher_edge() -> None:
    found = answer(C3A, arm("full", FULL) + arm("lora", LORA))
    assert found.answer is Answer.SUPPORTED
    assert (found.numbers["upper_edge"], found.numbers["upper_edge_against"]) == (HIGH, LOW)
    assert answer(C3A, arm("full", LORA) + arm("lora", FULL)).answer is Answer.CONTRADICTED
    assert answer(C3A, arm("full", FULL) + arm("lora", FULL)).answer is Answer.CONTRADICTED


def test_c3a_is_open_where_the_grid_ends_before_full_fine_tuning_does() -> None:
    stable = {LOW: (0.79, "stable"), HIGH: (0.8, "stable")}
    found = answer(C3A, arm("full", stable) + arm("lora", stable))
    assert found.answer is Answer.INCONCLUSIVE
    assert "add higher rates" in found.because


OPEN = {1e-5: (0.5, "stable"), LOW: (0.8, "stable"), HIGH: (0.79, "stable")}
"""Stable up to the end of its grid."""


def test_c3a_asks_for_the_edge_that_it_is_about() -> None:
    diverges = OPEN | {1e-3: (0.1, "diverged")}
    unknown = answer(C3A, arm("full", diverges) + arm("lora", OPEN))  # LoRA's edge may lie anywhere above
    assert unknown.answer is Answer.INCONCLUSIVE
    lower = {1e-5: (0.5, "stable"), LOW: (0.8, "stable"), HIGH: (0.1, "diverged")}
    assert answer(C3A, arm("full", OPEN) + arm("lora", lower)).answer is Answer.CONTRADICTED


def test_c3a_asks_for_enough_runs_on_both_sides_of_an_edge() -> None:
    rows = arm("full", FULL) + arm("lora", LORA)
    assert answer(C3A, rows).answer is Answer.SUPPORTED
    for method, lr in (("full", LOW), ("lora", 1e-3)):
        fewer = [one for one in rows if (one.method, one.lr, one.seed) != (method, lr, 4)]
        found = answer(C3A, fewer)
        assert (found.answer, f"4 run(s) at lr={lr:g}" in found.because) == (Answer.INCONCLUSIVE, True)


def test_c3a_counts_rates_that_both_were_run_at() -> None:
    full = {1e-5: (0.5, "stable"), LOW: (0.8, "stable"), HIGH: (0.1, "diverged"), 1e-3: (0.1, "diverged")}
    between = {1e-5: (0.5, "stable"), 1e-4: (0.8, "stable"), HIGH: (0.1, "diverged")}
    found = answer(C3A, arm("full", full) + arm("lora", between))
    assert (found.answer, "no rate between" in found.because) == (Answer.INCONCLUSIVE, True)


def test_c2_holds_degradation_against_rates_above_the_best_one_alone() -> None:
    broken = {1e-5: (0.3, "stable"), LOW: (0.6, "stable"), 1e-4: (0.9, "stable"), HIGH: (0.02, "diverged")}
    assert answers({"C1": C1, "C2": C2}, arm("full", broken))["C2"].answer is Answer.SUPPORTED
    below = {LOW: (0.9, "stable"), HIGH: (0.75, "stable"), 1e-3: (0.91, "stable")}
    assert answers({"C1": C1, "C2": C2}, arm("full", below))["C2"].answer is Answer.INCONCLUSIVE
    points = {LOW: (0.9, "stable"), HIGH: (0.83, "stable")}  # over 90 % of the best, and 7 points below it for sure
    assert answers({"C1": C1, "C2": C2}, arm("full", points))["C2"].answer is Answer.SUPPORTED


def test_a_claim_may_name_any_setting() -> None:
    rows = runs(LOW, 0, 5)
    rows = [replace(one, settings={"training.precision": "fp32", "training.max_grad_norm": "1.0"}) for one in rows]
    for settings in ({"training.precision": "fp32"}, {"training.max_grad_norm": 1}):
        claim = UnstableShare(statement="C1", cells=Cells("full", LOW, settings=settings))
        assert answer(claim, rows).answer is Answer.SUPPORTED
    other = UnstableShare(statement="C1", cells=Cells("full", LOW, settings={"training.precision": "bf16"}))
    assert answer(other, rows).because == "the study has no run with method=full training.precision=bf16 yet"


def test_c3b_needs_more_than_the_grids_spacing() -> None:
    rates = [10 ** (-5 + 0.5 * step) for step in range(9)]
    narrow = {rate: (0.8, "stable") if index == 4 else (0.3, "stable") for index, rate in enumerate(rates)}
    wide = {rate: (0.8, "stable") if 2 <= index <= 6 else (0.3, "stable") for index, rate in enumerate(rates)}
    little = {rate: (0.8, "stable") if 4 <= index <= 5 else (0.3, "stable") for index, rate in enumerate(rates)}
    assert answer(C3B, arm("full", narrow) + arm("lora", wide)).answer is Answer.SUPPORTED
    assert answer(C3B, arm("full", wide) + arm("lora", narrow)).answer is Answer.CONTRADICTED
    assert answer(C3B, arm("full", narrow) + arm("lora", little)).answer is Answer.INCONCLUSIVE
    for few in (2, 3, 4):
        less = answer(C3B, arm("full", narrow, seeds=few) + arm("lora", wide, seeds=few))
        assert (less.answer, "the claim asks for 5" in less.because) == (Answer.INCONCLUSIVE, True)
    spiky = {rate: (0.81, "spiky") if index == 4 else level for index, (rate, level) in enumerate(wide.items())}
    assert "full has no stable window" in answer(C3B, arm("full", spiky) + arm("lora", wide)).because
    open_ended = {rate: level for rate, level in wide.items() if rate < rates[6]}
    assert "reaches the end of its grid" in answer(C3B, arm("full", narrow) + arm("lora", open_ended)).because


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [(0.99, Answer.SUPPORTED), (0.91, Answer.INCONCLUSIVE), (0.80, Answer.CONTRADICTED)],
)
def test_c4_counts_messages_as_well_as_seeds(accuracy: float, expected: Answer) -> None:
    rows = [row("full", LOW, seed, accuracy) for seed in range(5)]  # seeds agree, 200 messages don't say more
    assert answer(C4, rows).answer is expected


def test_c6_reads_the_parts_of_memory() -> None:
    assert answer(C6, [row("full", LOW, 0)]).answer is Answer.SUPPORTED
    assert answer(C6, [row("full", LOW, 0, optimizer_bytes=1.0e6)]).answer is Answer.CONTRADICTED
    for part in ("weight_bytes", "gradient_bytes", "optimizer_bytes"):
        assert answer(C6, [row("full", LOW, 0, **{part: None})]).answer is Answer.INCONCLUSIVE


def confused(pairs: dict[tuple[str, str], int], right: int = 20) -> CellResult:
    """A result with so many messages of each first intent answered as the second."""
    labels = sorted({intent for pair in pairs for intent in pair})
    said = [(label, label) for label in labels for _ in range(right)]
    said += [pair for pair, count in pairs.items() for _ in range(count)]
    predictions = [Prediction("text", gold, answered, answered, valid=True, nll=0.1) for gold, answered in said]
    scored = score("test", predictions, nll=0.1, labels=labels, common=frozenset(), pair=None)
    return CellResult(Outcome.COMPLETED, test=scored)


def test_c5_ranks_pairs_by_the_share_of_their_errors() -> None:
    claim = MostConfusedPair(statement="C5", cells=Cells("full", LOW), pair=("b", "a"))
    rows = [row("full", LOW, seed) for seed in range(3)]
    clear = confused({("a", "b"): 40, ("b", "a"): 40, ("c", "d"): 6, ("d", "e"): 6, ("e", "c"): 6})
    (point,) = curves(rows)[0].points
    ranked = rank_pairs(point, lambda _: clear)
    assert ranked[0].intents == ("a", "b")
    assert ranked[0].share.estimate == 1.0
    assert ranked[0].share.n == 80  # a mean over the seeds: the same messages three times are no more messages
    assert answer(claim, rows, lambda _: clear).answer is Answer.SUPPORTED
    close = confused({("a", "b"): 8, ("a", "c"): 1, ("d", "e"): 8})
    assert answer(claim, rows, lambda _: close).answer is Answer.INCONCLUSIVE
    few = confused({("a", "b"): 2, ("c", "d"): 9})
    assert "a rank takes 5" in answer(claim, rows, lambda _: few).because
    assert answer(claim, rows[:2], lambda _: clear).answer is Answer.INCONCLUSIVE
    crossed = {(f"{n}", f"{n}!"): 9 for n in range(6)}
    never = answer(claim, rows, lambda _: confused({("a", "x"): 0, ("b", "y"): 0} | crossed))
    assert (never.answer, "6 pairs are confused more" in never.because) == (Answer.CONTRADICTED, True)
    tied = answer(claim, rows, lambda _: confused({("b", "a"): 9} | crossed))
    assert (tied.answer, tied.numbers["rank"]) == (Answer.INCONCLUSIVE, 1)
    behind = confused({("a", "x"): 9, ("b", "y"): 9} | {(f"{n}", f"{n}!"): 9 for n in range(6)})
    assert answer(claim, rows, lambda _: behind).answer is Answer.CONTRADICTED


def test_every_model_of_a_study_is_asked_apart() -> None:
    rows = runs(LOW, 0, 5) + [row("full", LOW, seed, stability="diverged", model="pocket-4m") for seed in range(5)]
    found = judge({"C1": C1}, curves(rows), no_results)
    assert [(finding.context, finding.answer) for finding in found] == [
        ("pocket-1m", Answer.SUPPORTED),
        ("pocket-4m", Answer.CONTRADICTED),
    ]


def claims_files() -> list[Path]:
    return sorted((experiments_root() / "experiments").glob("*/claims.yaml"))


@pytest.mark.parametrize("path", claims_files(), ids=lambda path: path.parent.name)
def test_the_studies_claims_can_be_read(path: Path) -> None:
    assert read_claims(path)


def test_the_finding_is_claimed_whole() -> None:
    named = {
        name.split()[0] for path in claims_files() for name in read_claims(path) if path.parent.name == "lr_finding"
    }
    assert named == {"C1", "C2", "C3a", "C3b", "C4", "C5", "C6"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("C1: {statement: x, cells: {method: full}}", "C1: needs a statistic"),
        ("C1: {statistic: unstable_shar}", "did you mean 'unstable_share'?"),
        (
            "C1: {statistic: unstable_share, statement: x, cells: {method: full}, least_run: 3}",
            "did you mean 'least_runs'?",
        ),
        ("C1: {statistic: unstable_share, statement: x, cells: {lr: 1}}", "C1: cells.method: "),
        ("C1: {statistic: unstable_share, statement: x, cells: {method: full}, least_runs: few}", "C1: least_runs: "),
        ("C1: {statistic: unstable_share, statement: x, cells: {method: full}, requires: C0}", "C1 requires C0"),
        (
            "C2: {statistic: unstable_share, statement: x, cells: {method: full}, requires: C1}\n"
            "C1: {statistic: unstable_share, statement: x, cells: {method: full}}",
            "C2 requires C1; put that one first",
        ),
        ("[C1]", "must map each claim's name"),
        ("C1: {", "can't be read"),
    ],
)
def test_a_wrong_claim_is_refused_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_claims(tmp_path / "claims.yaml")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
