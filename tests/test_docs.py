"""Every command that the documents show is run, on less data where it would take long."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from benchmarks.__main__ import NAMES as BENCHMARKS
from mlflow import MlflowClient

from ftmatrix.cli import run
from ftmatrix.cli.commands import COMMANDS
from ftmatrix.spec import study_of

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("experiments/*/README.md"))]
PROGRAMS = ("make", "ftmatrix", "python", "mlflow", "curl", "git", "cd", "source", "hf")
ONE_CELL = ("method=full", "model=pocket-1m", "lr=1e-3", "seed=0")
FEW_MESSAGES = ("training.epochs=1", "data.limit=80", "data.test_limit=20", "report=false")
ELSEWHERE = {
    "curl": "test_registry.py posts to MLflow's server",
    "mlflow": "test_registry.py serves with it",
    "git": "the reader's",
    "cd": "the reader's",
    "source": "the reader's",
    "hf": "the hub's",
    "export": "the reader's shell's",
    "docker": "test_tracking_server.py runs the server's own command of the compose file",
}


def commands(text: str) -> list[str]:
    """The command lines of a document: those of its console blocks, and those between backticks."""
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.split(" # ")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    lines += [words for words in inline if " " in words and words.split()[0] in PROGRAMS]
    return [part.strip() for line in lines for part in re.sub(r"\[[^]]*\]", "", line).split("&&")]


SHOWN = sorted({command for path in DOCUMENTS for command in commands(path.read_text())})

STUDY, GRIDS = re.findall(r"^```yaml\n(.*?)^```", DOCUMENTS[0].read_text(), re.MULTILINE | re.DOTALL)


def recipe(words: list[str]) -> list[str]:
    """What make would run."""
    of_the_make_that_runs_us = ("MAKE", "ARGS", "EXPERIMENT")
    environment = {
        name: value for name, value in os.environ.items() if not any(word in name for word in of_the_make_that_runs_us)
    }
    command = ["make", "--no-print-directory", "-n", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    program, *rest = shlex.split(done.stdout.splitlines()[-1])
    return [Path(program).name, *rest]


def test_there_are_commands() -> None:
    assert len(SHOWN) > 15
    assert {"make sweep", "make test", "make report"} <= set(SHOWN)


@pytest.fixture(scope="module")
def one_cells_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one study of one cell, which keeps its weights."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        assert run([*ONE_CELL, *FEW_MESSAGES, "study=kept", "save_model=true", "report=false"]) == 0
    return folder / "mlflow.db"


@pytest.fixture
def has_run(one_cells_store: Path, tmp_path: Path) -> Callable[[str], None]:
    """Puts a store where commands look for it, as if a study of this name had run."""

    def put(study: str) -> None:
        shutil.copy(one_cells_store, tmp_path / "mlflow.db")
        client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("kept")
        assert experiment is not None
        client.rename_experiment(experiment.experiment_id, study)

    return put


@pytest.mark.parametrize("command", SHOWN)
def test_a_command_of_the_documents_works(
    command: str,
    data_folder: Path,
    model_folders: dict[str, Path],
    tmp_path: Path,
    has_run: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}"
    )  # MLflow keeps what it has open by name
    words = shlex.split(re.sub(r"^[A-Z_]+=\S+ ", "", command))
    if words[0] == "make":
        words = recipe(words[1:])
    words = [word.replace("data.path=DIR", f"data.path={data_folder}") for word in words]
    words = [word.replace("model.path=DIR", f"model.path={model_folders['gemma']}") for word in words]
    (tmp_path / "experiments" / "NAME").mkdir(parents=True)
    (tmp_path / "experiments" / "NAME" / "grid.yaml").write_text(STUDY)
    program, *arguments = words
    if program == "ftmatrix":
        ftmatrix(arguments, has_run, monkeypatch)
    elif program == "python" and arguments[:2] == ["-m", "benchmarks"]:
        assert {word for word in arguments[2:] if "=" not in word} <= set(BENCHMARKS)
    elif program in ("python", "ruff", "mypy"):
        called = [sys.executable, *arguments] if program == "python" else [Path(sys.executable).with_name(program)]
        assert subprocess.run([*called, "--help"], capture_output=True, check=False).returncode == 0
    else:
        assert program in ELSEWHERE


def ftmatrix(arguments: list[str], has_run: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep runs as one cell, or is planned where it needs the hub; what reads a study has that cell to read."""
    match arguments:
        case ["ui", *_]:
            started: list[list[str]] = []

            def execute(_: str, command: list[str]) -> NoReturn:
                started.append(command)
                raise SystemExit

            monkeypatch.setattr(os, "execv", execute)
            with pytest.raises(SystemExit):
                run(arguments)
            assert started[0][1:4] == ["-m", "mlflow", "ui"]
        case ["report", "--from", path]:
            recorded = ROOT / "experiments" / "lr_finding" / "results.csv"
            assert run(["report", "--from", str(recorded if path == "FILE" else ROOT / path)]) == 0
        case ["report" | "register" | "export", *_]:
            study = study_of(next((word for word in arguments[1:] if not word.startswith("-")), "ftmatrix"))
            has_run(study)
            assert run(arguments) in ((0, 3, 4) if "--exit-code" in arguments else (0,))
        case ["doctor", *flags]:
            assert set(flags) <= set(COMMANDS["doctor"].flags)
            assert run(["doctor"]) == 0
        case ["plan", *_] | ["--help"]:
            assert run(arguments) == 0
        case _ if needs_the_hub(arguments) or "hydra/launcher" in " ".join(arguments):  # test_cluster.py runs these
            assert run(["plan", *arguments, "seed=0"]) == 0
        case _:
            one = [word for word in ONE_CELL if not (word.startswith("model=") and "model=local" in arguments)]
            assert run([*arguments, *one, *FEW_MESSAGES]) == 0


def needs_the_hub(arguments: list[str]) -> bool:
    """Whether a sweep's model isn't on this machine."""
    models = [word.split("=")[1] for word in arguments if word.startswith("model=")]
    return any(not model.startswith(("pocket", "local")) for model in models) or "experiment=lr_finding" in arguments
