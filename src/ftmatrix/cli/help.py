"""What `ftmatrix --help` and `ftmatrix COMMAND --help` say."""

import textwrap
from collections.abc import Iterator, Mapping

from ftmatrix.cli.commands import Command

WIDTH = 120
KEYS = 38
"""Columns of the keys with their defaults."""

HEAD = """\
ftmatrix compares full fine-tuning, LoRA and QLoRA over model sizes, learning rates and seeds.

  ftmatrix method=lora model=pocket-1m lr=1e-3 seed=0      one cell
  ftmatrix method=full,lora,qlora lr=1e-4,1e-3 seed=0,1    a grid: every combination of the commas
  ftmatrix experiment=NAME                                 a study: {studies}

Commands (`ftmatrix COMMAND --help` tells more)
{commands}

Axes
  method   {methods}
  model    {models}
           any folder or GGUF file: model=local model.path=DIR    any hub repository: model=hub model.hub_id=OWNER/NAME
  data     {data}
           data=csv data.path=DIR (train.csv, test.csv: text,category)    data=jsonl (train.jsonl, test.jsonl)
  lr       peak learning rate          seed     adapters' initial weights, dropout, order of data

Settings, with the value that each has if nothing sets it (a method, model or data set may set another)
{settings}
  {n_jobs}
  {launcher}

Results go to MLflow: tracking.uri, else MLFLOW_TRACKING_URI, else sqlite:///mlflow.db. A cell that is in the store
is not run again. `ftmatrix --cfg job ARGUMENTS` prints the composed configuration; FTMATRIX_TRACEBACK=1 shows
tracebacks.
Exit code: 0 every cell has a result (divergence is one), 1 some cell failed, 2 wrong command, 130 interrupted.
"""
SWEEP = {
    "n_jobs=null": "Cells side by side (null: as many as cores and memory allow on a CPU, one a card on GPUs; auto).",
    "hydra/launcher=cells": "Where cells run: cells (here), joblib, ray, submitit_local, submitit_slurm.",
}
"""Settings of a sweep that are Hydra's."""


def help_text(commands: Mapping[str, Command]) -> str:
    """Commands, axes and every setting."""
    from ftmatrix.spec import documented_settings, known_studies, options

    n_jobs, launcher = (_line(key, text) for key, text in SWEEP.items())
    return HEAD.format(
        studies=", ".join(sorted(known_studies())),
        commands="\n".join(_command_lines(commands)),
        methods=", ".join(options("method")),
        models=f"\n{' ' * 11}".join(textwrap.wrap(", ".join(options("model")), 100)),
        data=", ".join(options("data")),
        settings="\n".join(f"  {_line(f'{one.key}={one.default}', one.text)}" for one in documented_settings()),
        n_jobs=n_jobs,
        launcher=launcher,
    )


def command_help(name: str, command: Command) -> str:
    """What one command takes and does."""
    lines = [f"ftmatrix {name} {command.takes}".rstrip(), "", *textwrap.wrap(command.does, WIDTH)]
    if command.options:
        lines += ["", *(f"  {_line(option, text, 20)}" for option, text in command.options.items())]
    return "\n".join(lines)


def _command_lines(commands: Mapping[str, Command]) -> Iterator[str]:
    for name, command in commands.items():
        yield f"  {name:<9}{command.does.partition('. ')[0].rstrip('.')}"


def _line(key: str, text: str, width: int = KEYS) -> str:
    """A key, and its text beside it."""
    indent = " " * (width + 4)
    wrapped = textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent).lstrip()
    return f"{key:<{width}}  {wrapped}" if len(key) <= width else f"{key}\n{indent}{wrapped}"
