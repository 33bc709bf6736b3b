"""What the command line does, from Python and under the same names: `import ftmatrix`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ftmatrix.errors import ConfigError

if TYPE_CHECKING:
    from pandas import DataFrame

    from ftmatrix.process import Listener
    from ftmatrix.reporting import Source, Summary
    from ftmatrix.serving import IntentModel
    from ftmatrix.spec import Asked
    from ftmatrix.store import Store

STUDY = "ftmatrix"
"""The study of runs that name no other."""


def plan(**settings: Any) -> "DataFrame":
    """What `run` would do with the same settings; nothing is run or downloaded.

    Returns:
        A row a cell: `action` (run, done, fetch and run, …) with its `reason`, the forecast `peak_bytes`, and
        the `seconds` that finished cells let it expect (NaN: unknown).

    Raises:
        ConfigError: a setting or a value is unknown or out of range.
    """
    from ftmatrix.sweep import look_ahead, plan_frame

    asked = _asked(settings | {"plan": True})
    planned, _ = look_ahead(asked.cells, _n_jobs(asked))
    return plan_frame(planned)


def run(*, listeners: "Sequence[Listener]" = (), **settings: Any) -> "DataFrame":
    """Run a cell, a grid or a study, and tell on standard output how it goes.

    Settings are those of the command line: `run(method=["full", "lora"], lr=[1e-4, 1e-3], seed=[0, 1])`,
    `run(experiment="pocket")`. A list holds several values, a dict settings of their own (`training={"epochs": 2}`), a
    tuple one value that is a list. Cells that are done are taken as they are, and what was stopped goes on.
    `listeners` hear of each cell's phases and steps, and may stop it.

    Returns:
        A row a cell, as `results` has them. A cell without a result has its `outcome` and `reason`.

    Raises:
        ConfigError: a setting or a value is unknown or out of range, before anything is loaded.
        UndeliveredError: MLflow stayed away; the results wait on this disk for the next run.
        KeyboardInterrupt: after the running cells have saved how far they came.
    """
    from hydra.utils import instantiate

    from ftmatrix.process import open_console
    from ftmatrix.reporting import as_frame
    from ftmatrix.sweep import carry_out

    asked = _asked(settings)
    if asked.cells[0].plan:
        raise ConfigError("plan=true: ftmatrix.plan(...) plans")
    _n_jobs(asked)
    launcher = instantiate(asked.launcher)
    campaign = carry_out(
        asked.cells, open_console(), n_jobs=launcher.n_jobs, engine=launcher.engine(), listeners=listeners
    )
    return as_frame(campaign.distinct)


def results(study: str = STUDY, *, file: str | Path | None = None, tracking_uri: str | None = None) -> "DataFrame":
    """Every cell of a study, of the store or of a results.csv.

    Returns:
        A row a cell: axes, outcome, stability, the settings in which cells differ, and every metric under its name in
        MLflow: rates and accuracies in [0, 1], NLL in nats per label token, memory in bytes, times in seconds.

    Raises:
        ConfigError: there is no such study, store or file.
    """
    from ftmatrix.reporting import as_frame

    return as_frame(_source(study, file, tracking_uri).cells())


@dataclass(frozen=True)
class Report:
    """A study's report. `files` begin with the page; in a notebook it shows itself as Markdown."""

    summary: "Summary"
    files: tuple[Path, ...]

    @property
    def page(self) -> Path:
        """The HTML page."""
        return self.files[0]

    @property
    def markdown(self) -> str:
        """The report in Markdown; its pictures lie beside the page."""
        return next(path for path in self.files if path.suffix == ".md").read_text(encoding="utf-8")

    @property
    def claims(self) -> dict[str, dict[str, str]]:
        """The answer to each claim (supported, contradicted, inconclusive), by the claim and what it was asked of."""
        found: dict[str, dict[str, str]] = {}
        for finding in self.summary.findings:
            found.setdefault(finding.claim, {})[finding.context] = finding.answer.value
        return found

    def _repr_markdown_(self) -> str:
        return self.markdown


def report(study: str = STUDY, *, file: str | Path | None = None, tracking_uri: str | None = None) -> Report:
    """Write a study's report to reports/STUDY, from the store or from a results.csv.

    Raises:
        ConfigError: there is no such study, store or file, or its claims can't be read.
    """
    from ftmatrix.reporting import make_report
    from ftmatrix.spec import REPORTS

    source = _source(study, file, tracking_uri)
    summary, files = make_report(source, REPORTS / source.study)
    return Report(summary, tuple(files))


def load(study: str = STUDY, *, run_id: str | None = None, tracking_uri: str | None = None) -> "IntentModel":
    """The study's best cell by validation among those that keep their weights (`save_model=True`), or the one of a run.

    `load("pocket").predict(["where is my card?"])` gives an intent for each message, always one of the label set.

    Raises:
        ConfigError: no cell keeps its weights, or there is no such run.
        ModelError: the base model under an adapter isn't here and can't be fetched.
    """
    from ftmatrix.serving import best_kept, load_kept, run_of

    store = _store(study, tracking_uri)
    row = best_kept(store) if run_id is None else run_of(store, run_id)
    with TemporaryDirectory() as folder:
        return load_kept(store, row, Path(folder))


def _asked(settings: dict[str, Any]) -> "Asked":
    """The cells that settings ask for."""
    from ftmatrix.spec import ask, words_of

    grids = settings.pop("grids", None) or []
    if not isinstance(grids, list) or not all(isinstance(grid, Mapping) for grid in grids):
        raise ConfigError(f"grids={grids!r}: give a list of dicts, each with the values of a grid")
    return ask(list(words_of(settings)), [list(words_of(grid)) for grid in grids])


def _n_jobs(asked: "Asked") -> int | str | None:
    if "n_jobs" not in asked.launcher:
        raise ConfigError(f"hydra/launcher: {asked.launcher.get('_target_')} isn't one of ftmatrix; take cells, ray, …")
    found: int | str | None = asked.launcher.n_jobs
    return found


def _source(study: str, file: str | Path | None, tracking_uri: str | None) -> "Source":
    from ftmatrix.study import read_results

    if file is None:
        return _store(study, tracking_uri)
    if study != STUDY or tracking_uri is not None:
        raise ConfigError(f"file={file}: names its own study; leave out study and tracking_uri")
    return read_results(Path(file))


def _store(study: str, tracking_uri: str | None) -> "Store":
    from ftmatrix.spec import Tracking, study_of
    from ftmatrix.store import Store

    return Store(Tracking(uri=tracking_uri).store, study_of(study), create=False)
