"""The command line. Exit codes: 0 every cell has a result, 1 some cell failed, 2 a wrong command, 130 interrupted."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ftmatrix.cli.commands import COMMANDS
from ftmatrix.cli.help import command_help, help_text
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
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        from ftmatrix.spec import explain

        _complain(error, explain(error))
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
            print(help_text(COMMANDS), end="")
        case [word, *rest] if word in COMMANDS and word != "ui" and {"-h", "--help"} & {*rest}:
            print(command_help(word, COMMANDS[word]))
        case ["--version"]:
            print(f"ftmatrix {version('ftmatrix')}")
        case ["plan", *rest]:
            _hydra([*rest, "plan=true"])
        case [word, *rest] if word in COMMANDS and (act := COMMANDS[word].act):
            act(rest)
        case [word, *_] if word.isidentifier():
            raise ConfigError(
                f"{word}: no such command; {nearest(word, [*COMMANDS, 'help'])}; settings are written KEY=VALUE"
            )
        case _:
            _hydra(arguments)


def _hydra(arguments: list[str]) -> None:
    """Let Hydra compose and launch; its errors come back as exceptions."""
    import hydra

    from ftmatrix.spec import config_folder, expand, register_schemas

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

    from ftmatrix.records import Outcome
    from ftmatrix.spec import cell_from
    from ftmatrix.sweep import sweep

    (row,) = sweep([replace(cell_from(config), report=False)], n_jobs=1)
    if row is not None and row.outcome is not Outcome.COMPLETED:
        raise CellFailedError(row.reason)
    return None if row is None else row.metric("val_accuracy")


def _complain(error: Exception, line: str) -> None:
    if os.environ.get("FTMATRIX_TRACEBACK") == "1":
        raise error
    print(f"ftmatrix: {line}", file=sys.stderr)
