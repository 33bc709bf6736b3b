"""The command line. Exit codes: 0 every cell has a result, 1 some cell failed, 2 a wrong command, 130 interrupted."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
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
  ftmatrix register [STUDY] [--name=NAME]                    the study's best cell, for MLflow's model registry
  ftmatrix ui                                                MLflow's user interface on the store

Axes
  method   {methods}
  model    {models}
           any folder: model=local model.path=DIR    any hub repository: model=hub model.hub_id=OWNER/NAME
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

COMMANDS = ("plan", "report", "register", "ui", "help")
"""Words that stand alone at the front."""

REPORT_FLAGS = ("--json", "--exit-code")
"""What `report` takes beside a study."""

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
        case [] | ["-h" | "--help" | "help", *_] | ["plan" | "report" | "register", "-h" | "--help"]:
            print(_help())
        case ["--version"]:
            print(f"ftmatrix {version('ftmatrix')}")
        case ["plan", *rest]:
            _hydra([*rest, "plan=true"])
        case ["report", *rest]:
            _report(rest)
        case ["register", *rest]:
            _register(rest)
        case ["ui", *rest]:
            _ui(rest)
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
    from ftmatrix.records import Outcome
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
    from ftmatrix.report import as_json, make_report, print_report
    from ftmatrix.tracking import Store

    flags = {word for word in arguments if word.startswith("-")}
    if unknown := sorted(flags - set(REPORT_FLAGS)):
        raise ConfigError(f"report {unknown[0]}: no such option; {nearest(unknown[0], REPORT_FLAGS)}")
    study = _only_study("report", arguments)
    store = Store(Tracking().store, study, create=False)
    summary, files = make_report(store, REPORTS / study)
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


def _help() -> str:
    from ftmatrix.overrides import options
    from ftmatrix.studies import studies

    named = {group: ", ".join(options(group)) for group in ("method", "model", "data")}
    return HELP.format(
        methods=named["method"],
        models=_wrapped(named["model"]),
        data=named["data"],
        studies=", ".join(sorted(studies())),
    )


def _wrapped(text: str) -> str:
    import textwrap

    return f"\n{' ' * 11}".join(textwrap.wrap(text, 100))


def _complain(error: Exception, line: str) -> None:
    if os.environ.get("FTMATRIX_TRACEBACK") == "1":
        raise error
    print(f"ftmatrix: {line}", file=sys.stderr)
