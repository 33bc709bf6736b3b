"""Whether cells on this machine come to what they should: trained, held against a recorded curve, and looked at."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from ftmatrix.doctor.findings import Figures, Finding, State
from ftmatrix.doctor.measures import Measured, measure
from ftmatrix.doctor.subjects import GEMMA, POCKET, Subject, cells_of
from ftmatrix.doctor.trials import Trial, can_be_starved, run_together, starved
from ftmatrix.errors import UnsupportedError
from ftmatrix.machine import Device, pick
from ftmatrix.models import MODELS, folder_of
from ftmatrix.records import Outcome, Phase
from ftmatrix.spec import FailedCell, ReadyCell
from ftmatrix.sweep import plan
from ftmatrix.text import gibibytes

CURVES = Path(__file__).with_name("curves.json")
"""The losses that these cells came to on a CPU, by model and method."""
SAME_START, SAME_CURVE = 1e-3, 0.02
"""How far the first loss, and any later one, may be from the recorded one, as a share of it: other processors sum in
another order, and training makes more of the difference from step to step."""
SAME_PLACE = 1e-3
"""How much of a mean loss may lie between packed and padded rows, in float32 and what GPUs make of it."""
SAME_SIZE = 0.1
"""Share by which a peak may differ from its forecast."""
FREED_BYTES = 64 * 2**20
"""What a dead process may leave taken on a GPU: another's ups and downs."""

Tell = Callable[[str], None]


def prove(folder: Path, tell: Tell) -> list[Finding]:
    """Run it all, in some minutes. `folder` is for what the cells leave; `tell` hears what is being done.

    Raises:
        UnsupportedError: not even full fine-tuning can start here.
    """
    findings: list[Finding] = []
    trials: dict[str, Trial] = {}
    cells = _ready(POCKET, folder)
    for name, cell in cells.items():
        findings += _tried(POCKET, name, cell, folder, tell, trials)
    if not isinstance(full := cells["full"], ReadyCell):
        raise UnsupportedError(f"full fine-tuning can't start: {full.result.reason}")
    others = [cell for cell in (cells["lora"],) if isinstance(cell, ReadyCell)]
    tell("the same cell again")
    (again,) = run_together([full], folder / "again")
    findings.append(_same("one cell twice", [trials["full"]], [again]))
    tell("two cells side by side")
    findings.append(_same("two side by side", [*trials.values()][:2], run_together([full, *others], folder / "both")))
    findings += _starved(full, folder, tell)
    tell("packed against padded rows, and transformers' Trainer")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        findings += _measured(pool.submit(measure, full).result())
    if (folder_of(GEMMA.model) / MODELS[GEMMA.model].file).exists():
        for name, cell in _ready(GEMMA, folder).items():
            findings += _tried(GEMMA, name, cell, folder, tell, {})
    return findings


def _ready(subject: Subject, folder: Path) -> dict[str, ReadyCell | FailedCell]:
    planned = plan(cells_of(subject, folder), None)
    found = (item.prepared for item in planned)
    return {item.cell.method.name: item for item in found if isinstance(item, ReadyCell | FailedCell)}


def _tried(
    subject: Subject, name: str, cell: ReadyCell | FailedCell, folder: Path, tell: Tell, trials: dict[str, Trial]
) -> Iterator[Finding]:
    """One method's cell, its curve and its peaks."""
    title = f"{name} {subject.model}"
    if isinstance(cell, FailedCell):
        yield Finding(title, f"{cell.result.outcome}: {cell.result.reason}", State.OFF)
        return
    tell(title)
    (trial,) = run_together([cell], folder / title.replace(" ", "-"))
    trials[name] = trial
    if trial.result.outcome is not Outcome.COMPLETED:
        yield Finding(title, f"{trial.result.outcome}: {trial.result.reason}", State.OFF)
        return
    yield _curve(title, trial, recorded(subject.model, name))
    yield from _peaks(title, cell, trial)


def recorded(model: str, method: str) -> list[float] | None:
    """The losses that a CPU came to; None where nobody recorded any."""
    curves: dict[str, dict[str, list[float]]] = json.loads(CURVES.read_text()) if CURVES.exists() else {}
    return curves.get(model, {}).get(method)


def _curve(title: str, trial: Trial, expected: list[float] | None) -> Finding:
    """A trained cell against the recorded curve of the same cell on a CPU."""
    taken = f"{len(trial.steps)} steps in {trial.seconds:.0f} s with its process's start"
    losses = trial.losses
    words = f"trains, loss {losses[0]:.3f} to {losses[-1]:.3f}, {taken}"
    if expected is None or len(expected) != len(losses):
        return Finding(title, f"{words}; no recorded curve to hold it against", State.OFF)
    apart = [abs(one - other) / other for one, other in zip(losses, expected, strict=True)]
    agrees = apart[0] <= SAME_START and max(apart) <= SAME_CURVE
    bounds = f"{apart[0]:.2g} from the recorded CPU's at first, {max(apart):.2g} at most"
    state = State.OK if agrees else State.OFF
    figures: Figures = {
        "first_apart": apart[0],
        "most_apart": max(apart),
        "seconds": trial.seconds,
        "last_loss": losses[-1],
    }
    return Finding(title, f"{words}; {bounds} (allowed {SAME_START:g} and {SAME_CURVE:g})", state, figures)


def _peaks(title: str, cell: ReadyCell, trial: Trial) -> Iterator[Finding]:
    """Each phase's peak against its forecast."""
    if (forecast := cell.forecast) is None:
        return
    for peak in trial.result.peaks:
        foretold = {Phase.TRAIN: forecast.peak_bytes, Phase.EVALUATE: forecast.evaluate_bytes}.get(Phase(peak.phase))
        if foretold is None or peak.peak_bytes is None:
            continue
        apart = peak.peak_bytes / foretold - 1
        holds = apart <= 0 if forecast.is_bound else abs(apart) <= SAME_SIZE
        sign = "≤ " if forecast.is_bound else ""
        words = f"{gibibytes(peak.peak_bytes)}, forecast {sign}{gibibytes(foretold)} ({apart:+.0%})"
        figures: Figures = {"peak_bytes": peak.peak_bytes, "forecast_bytes": foretold, "counts": peak.counts}
        yield Finding(f"{title}, {peak.phase} peak", words, State.OK if holds else State.OFF, figures)


def _same(title: str, firsts: Sequence[Trial], agains: Sequence[Trial]) -> Finding:
    """Whether cells came to the same losses as before."""
    for again in agains:
        if again.result.outcome is not Outcome.COMPLETED:
            return Finding(title, f"{again.result.outcome}: {again.result.reason}", State.OFF)
    pairs = [
        (one, other)
        for first, again in zip(firsts, agains, strict=True)
        for one, other in zip(first.losses, again.losses, strict=True)
    ]
    apart = max(abs(one - other) / abs(one) for one, other in pairs)
    if apart == 0:
        return Finding(title, f"the same {len(pairs)} losses, bit for bit", State.OK, {"most_apart": 0.0})
    notes = [note for again in agains for note in again.result.notes if "another result" in note]
    words = f"losses up to {apart:.2g} apart" + (f": {notes[0]}" if notes else "")
    return Finding(title, words, State.NOTED if notes and apart <= SAME_CURVE else State.OFF, {"most_apart": apart})


def _starved(cell: ReadyCell, folder: Path, tell: Tell) -> Iterator[Finding]:
    """Whether a death by want of memory is an outcome, and leaves the device as it was."""
    title, device = "memory runs out", cell.accelerator.device
    if not can_be_starved(device):
        yield Finding(title, "can't be tried on this system")
        return
    tell("a cell without enough memory")
    before = pick(device).free_bytes
    (trial,) = run_together([cell], folder / "starved", starved)
    reason = str(trial.result.reason).partition(" (")[0]
    died = trial.result.outcome is Outcome.OUT_OF_MEMORY
    yield Finding(title, f"{trial.result.outcome}: {reason}", State.OK if died else State.OFF)
    after = pick(device).free_bytes
    if device is not Device.cpu and before is not None and after is not None:
        lost = before - after
        words = f"{gibibytes(after)} free as before" if lost <= FREED_BYTES else f"{gibibytes(lost)} weren't given back"
        yield Finding("the device afterwards", words, State.OK if lost <= FREED_BYTES else State.OFF)


def _measured(measured: Measured) -> Iterator[Finding]:
    if measured.difference is None:
        yield Finding("packed rows", "this device doesn't keep messages of a row apart; batches are padded", State.OFF)
    else:
        words = f"a message's loss is up to {measured.difference:.2g} of the mean loss from what padded rows give"
        agrees = measured.difference <= SAME_PLACE
        figures: Figures = {"difference": measured.difference}
        yield Finding("packed rows", f"{words} (allowed {SAME_PLACE:g})", State.OK if agrees else State.OFF, figures)
    times = measured.pace / measured.trainers_pace
    words = f"{measured.pace:,.0f} tokens/s, {times:.2f} times transformers' Trainer ({measured.trainers_pace:,.0f})"
    yield Finding("pace", words, figures={"tokens_per_second": measured.pace, "trainer": measured.trainers_pace})


def record(subject: Subject, folder: Path, tell: Tell) -> dict[str, list[float]]:
    """The curve of each method on this machine, for `curves.json`.

    Raises:
        UnsupportedError: a cell can't start.
    """
    curves: dict[str, list[float]] = {}
    for name, cell in _ready(subject, folder).items():
        tell(f"{name} {subject.model}")
        if isinstance(cell, FailedCell):
            raise UnsupportedError(f"{name} {subject.model}: {cell.result.reason}")
        (trial,) = run_together([cell], folder / name)
        if trial.result.outcome is not Outcome.COMPLETED:
            raise UnsupportedError(f"{name} {subject.model}: {trial.result.reason}")
        curves[name] = trial.losses
    return curves
