"""A sweep: plan every cell, skip what is done, run the rest side by side, end with the table."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console

from ftmatrix.cell import score_names
from ftmatrix.errors import ConfigError, first_line
from ftmatrix.process import Engine, Listener, open_console, warm_up, warm_up_early
from ftmatrix.records import Row
from ftmatrix.reporting import as_csv, as_text, failures, fitting_table, notes
from ftmatrix.spec import REPORTS, Cell, ReadyCell, claims_of, without_credentials
from ftmatrix.store import Store, SweepWriter, recover
from ftmatrix.sweep.plan_table import plan_reasons, plan_table, plan_totals
from ftmatrix.sweep.planning import Planned, known_here, plan, side_by_side
from ftmatrix.sweep.running import Running


@dataclass(frozen=True)
class Campaign:
    """A sweep that is over: a row a cell, in order, the title of its table, and where the study's report lies."""

    store: Store
    title: str
    planned: tuple[Planned, ...]
    rows: tuple[Row, ...]
    reported: str | None

    @property
    def distinct(self) -> list[Row]:
        """Its rows, each run once."""
        return list({row.run_id: row for row in self.rows}.values())


def sweep(cells: Sequence[Cell], *, n_jobs: int | str | None = None, engine: Engine | None = None) -> list[Row | None]:
    """Run the cells and print their comparison. Returns a row a cell; None each where only the plan was asked for.

    Raises:
        ConfigError, UndeliveredError, KeyboardInterrupt: see `carry_out`.
    """
    console = open_console()
    if cells[0].plan:
        _show_plan(cells, n_jobs, console)
        return [None] * len(cells)
    campaign = carry_out(cells, console, n_jobs=n_jobs, engine=engine)
    _show(campaign, console)
    return list(campaign.rows)


def carry_out(
    cells: Sequence[Cell],
    console: Console,
    *,
    n_jobs: int | str | None = None,
    engine: Engine | None = None,
    listeners: Sequence[Listener] = (),
) -> Campaign:
    """Run the cells here, `n_jobs` side by side, or as the jobs of an engine; say on the console how it goes.

    `listeners` hear of the cells that run here while they do.

    Raises:
        ConfigError: the cells don't agree on where results go, or `n_jobs` is no count.
        UndeliveredError: MLflow stayed away; the results wait on this disk.
        KeyboardInterrupt: after the running cells were stopped and their runs closed.
    """
    first = cells[0]
    check(cells, n_jobs)
    if engine is not None and listeners:
        raise ConfigError(f"hydra/launcher={engine.name}: listeners hear of cells that run here; take cells")
    if first.report and (claims := claims_of(first.study)):
        from ftmatrix.study import read_claims

        read_claims(claims)  # what is wrong with them is said before anything runs
    if engine is None:
        warm_up_early(cells)
    store = Store(first.tracking.store, first.study)
    for found in recover(store, Path(first.work_dir).absolute()):
        console.print(found, highlight=False, markup=False, soft_wrap=True)
    planned = _planned(cells, store, engine)
    name = first.tracking.sweep or f"{datetime.now():%Y%m%d-%H%M%S}"
    done = sum(item.done_run is not None for item in planned)
    if done:
        console.print(
            f"{done} of {len(planned)} cells are done already and are taken as they are (force=true runs them again)"
        )
    for note in data_notes(planned):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    with store.sweep(name, len(planned)) as writer:
        running = Running(store, name, writer.run_id, console, tuple(listeners))
        run_ids = running.here(planned, n_jobs) if engine is None else running.on(engine, planned)
        row_of = {row.run_id: row for row in store.rows(list(dict.fromkeys(run_ids)))}
        rows = list(row_of.values())
        title = f"{first.study}, sweep {name}"
        writer.text("comparison.csv", as_csv(rows))
        text = as_text(rows, title=title)
        writer.text("comparison.txt", text)
        reported, answer = _report(store, writer) if first.report and done < len(planned) else (None, "")
        writer.describe(f"{answer}\n\n```\n{text}\n```", answer or "The table is the artifact comparison.txt.")
    return Campaign(store, title, tuple(planned), tuple(row_of[run_id] for run_id in run_ids), reported)


def _show(campaign: Campaign, console: Console) -> None:
    """Print what a sweep came to: its table, what failed, what a reader has to know, and where it is recorded."""
    rows, store = campaign.distinct, campaign.store
    console.print(fitting_table(rows, title=campaign.title, console=console))
    for line in failures(rows):
        console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)
    ready = [item.prepared for item in campaign.planned if isinstance(item.prepared, ReadyCell)]
    said = {note for cell in ready for note in cell.dataset.notes}
    for line in notes(rows, but=said):
        console.print(f"Note: {line}", highlight=False, markup=False, soft_wrap=True)
    recorded = f"Recorded in {store.shown}, experiment {store.study!r}; `make ui` shows every run."
    page = REPORTS / store.study / "report.html"
    reported = campaign.reported
    if reported is None and page.exists():
        reported = _compared(page)
    compared = reported or f"`ftmatrix report {store.study}` compares methods, rates and seeds."
    for line in (compared, recorded):
        console.print(line, highlight=False, soft_wrap=True)


def _planned(cells: Sequence[Cell], store: Store, engine: Engine | None) -> list[Planned]:
    if engine is None:
        return plan(cells, store, meanwhile=warm_up)
    if without_credentials(store.uri) != store.uri:  # a job's description lies on disk
        raise ConfigError(
            f"tracking.uri={store.shown}: {engine.name} would write its password to disk; give it to every node as "
            "MLFLOW_TRACKING_PASSWORD"
        )
    engine.open()  # before anything is begun that waits for it
    return known_here(cells, store)


def _report(store: Store, writer: SweepWriter) -> tuple[str, str]:
    """Write the study's report, here and beside the sweep's run; where it lies, and its answer as Markdown.

    Without it the results are no less.
    """
    from ftmatrix.reporting import answer_as_markdown, make_report

    try:
        summary, files = make_report(store, REPORTS / store.study)
        writer.files(files, "report")
    except Exception as error:  # the disk, the store, a run that another version wrote
        return f"No report ({first_line(error)}); `ftmatrix report {store.study}` makes it later.", ""
    return _compared(files[0]), f"{answer_as_markdown(summary)}\n\nTables and plots: artifact `report/report.html`."


def _compared(page: Path) -> str:
    return f"Compared, with plots: {page}"


def look_ahead(cells: Sequence[Cell], n_jobs: int | str | None) -> tuple[list[Planned], Store | None]:
    """What a sweep would do, and the store that it was told by: one that isn't there, or doesn't answer, isn't needed.

    Raises:
        ConfigError: see `check`.
    """
    check(cells, n_jobs)
    try:
        store = Store(cells[0].tracking.store, cells[0].study, create=False)
    except ConfigError:
        store = None
    return plan(cells, store, fetch=False), store


def _show_plan(cells: Sequence[Cell], n_jobs: int | str | None, console: Console) -> None:
    """Print what a sweep would do."""
    planned, store = look_ahead(cells, n_jobs)
    notes = []
    if store is None:
        place = without_credentials(cells[0].tracking.store)
        notes.append(f"No finished cells to go by: {place} has none of {cells[0].study!r}, or can't be reached.")
    console.print(plan_table(planned))
    for line in (*plan_reasons(planned), *plan_totals(planned, side_by_side(planned, n_jobs)), *notes):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def check(cells: Sequence[Cell], n_jobs: int | str | None) -> None:
    """Refuse cells that aren't one sweep.

    Raises:
        ConfigError: they don't agree on where results go, or `n_jobs` is no count.
    """
    score_names()  # refuses one that would stand in another metric's place
    studies = sorted({cell.study for cell in cells})
    uris = sorted({without_credentials(cell.tracking.store) for cell in cells})
    for key, values in (("study", studies), ("tracking.uri", uris)):
        if len(values) > 1:
            raise ConfigError(f"{key} differs between the cells of one sweep ({', '.join(values)}); take one")
    if not (n_jobs in (None, "auto") or (isinstance(n_jobs, int) and n_jobs >= 1)):
        raise ConfigError(f"n_jobs={n_jobs}: must be at least 1, or auto for as many as cores and memory allow")


def data_notes(planned: Sequence[Planned]) -> list[str]:
    """What the checks of the data sets found, a line a finding."""
    ready = [item.prepared for item in planned if isinstance(item.prepared, ReadyCell)]
    found = [f"{cell.cell.data.title}: {note}" for cell in ready for note in cell.dataset.notes]
    titles: dict[str, list[str]] = {}
    for cell in ready:
        named = titles.setdefault(cell.dataset.digest, [])
        if (title := cell.cell.data.title) not in named:
            named.append(title)
    for same in titles.values():
        if len(same) > 1:
            found.append(f"{' and '.join(same)} hold the same messages: cells that differ in nothing else run once")
    return list(dict.fromkeys(found))
