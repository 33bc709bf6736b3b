"""The command as a user types it, in a process of its own: what it prints, and its exit code."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from ftmatrix.cli import run
from ftmatrix.cli.commands import COMMANDS
from ftmatrix.spec import documented_settings, every_setting

OFFLINE = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": "/nonexistent/hub"}
"""A hub that answers no call, and an empty cache."""


def search(folder: Path, query: str) -> list[str]:
    """Runs of the store that a command made in a folder."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return [run.info.run_id for run in client.search_runs(experiments, query)]


def ftmatrix(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from ftmatrix.cli import main; main()", *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_grid_ends_with_its_table(tmp_path: Path, data_folder: Path) -> None:
    arguments = ("method=full,lora", "lr=1e-3", "data=csv", f"data.path={data_folder}", "training.epochs=1")
    done = ftmatrix("-m", *arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.split()[:2] == ["pocket-1m", "full"] for line in lines) == 1
    assert sum(line.split()[:2] == ["pocket-1m", "lora"] for line in lines) == 1
    assert "sqlite:///mlflow.db" in lines[-1]
    assert done.stderr == ""
    assert "Compared, with plots: reports/ftmatrix/report.html" in lines
    assert (tmp_path / "reports" / "ftmatrix" / "report.html").exists()
    (sweep_run,) = search(tmp_path, "tags.kind = 'sweep'")
    artifacts = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").list_artifacts(sweep_run, "report")
    assert {"report/report.html", "report/rates-pocket-1m.png"} <= {file.path for file in artifacts}
    again = ftmatrix("-m", *arguments, folder=tmp_path)
    assert again.returncode == 0
    assert "2 of 2 cells are done already" in again.stdout
    assert "start " not in again.stdout
    study = tmp_path / "experiments" / "ftmatrix"
    study.mkdir(parents=True)
    (study / "grid.yaml").write_text("# @package _global_\n")
    (study / "claims.yaml").write_text(
        "C: {statement: Five seeds., statistic: unstable_share, cells: {method: full, lr: 1e-3}}"
    )
    report = ftmatrix("report", "ftmatrix", folder=tmp_path)
    assert report.returncode == 0, report.stderr
    for said in ("inconclusive", "Learning-rate tolerance", "full less lora", "1 run(s) at lr=0.001"):
        assert said in report.stdout
    assert (tmp_path / "reports" / "ftmatrix" / "report.md").exists()
    judged = ftmatrix("report", "ftmatrix", "--json", "--exit-code", folder=tmp_path)
    assert judged.returncode == 4
    assert json.loads(judged.stdout)["claims"][0]["answer"] == "inconclusive"
    assert judged.stderr == ""


def test_an_unreachable_model_is_one_line_a_row_and_exit_code_1(tmp_path: Path) -> None:
    done = ftmatrix("model=gemma3-270m", "data=banking77", folder=tmp_path, **OFFLINE)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("model=gemma3-270m")]
    for said in ("google/gemma-3-270m", "reachable", "licence", "model=local model.path=DIR"):
        assert said in line
    assert any(line.split()[:2] == ["gemma3-270m", "full"] for line in done.stdout.splitlines())
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lr=abc"], "lr: Value 'abc' of type 'str' could not be converted to Float"),
        (["lr=5"], "lr=5: a learning rate must lie in (0, 1]"),
        (["lrr=1e-3"], "lrr: no such setting; did you mean 'lr'?"),
        (["trainig.epochs=3"], "trainig.epochs: no such setting; did you mean 'training.epochs'?"),
        (["training.epoch=3"], "training.epoch: no such setting; did you mean 'training.epochs'?"),
        (["training.epochs=1.5"], "training.epochs: Value '1.5' of type 'float' could not be converted to Integer"),
        (["training.precision=fp16"], "training.precision: Invalid value 'fp16', expected one of"),
        (["training.schedule=cosin"], "training.schedule: Invalid value 'cosin'"),
        (["method=lorra"], "method=lorra: no such method; did you mean 'lora'?"),
        (["model=gemma-270m"], "model=gemma-270m: no such model; did you mean 'gemma3-270m'?"),
        (["model=nosuch"], "model=nosuch: no such model; Available: gemma2-2b"),
        (["data=banking"], "data=banking: no such data; did you mean 'banking77'?"),
        (["method.rank=8", "method=lora"], "method.rank: no such setting"),
        (["method.r=8", "method=full"], "method.r: not a setting of this method"),
        (["+foo=1"], "+foo: nothing reads such a setting"),
        (["hydra/launcher=cellz"], "hydra/launcher=cellz: no such launcher; did you mean 'cells'?"),
        (["n_jobs=two"], "n_jobs=two: must be at least 1, or auto"),
        (["tracking.uri=http://127.0.0.1:9"], "no MLflow server answers there"),
        (["experiment=pocke"], "experiment=pocke: no such study; did you mean 'pocket'?"),
        (["model=local"], "model=local needs model.path=DIR"),
        (
            ["lr"],
            "lr: no such command; Available: doctor, export, fetch, help, plan, register, report, ui; settings are "
            "written KEY=VALUE",
        ),
        (["reprot"], "reprot: no such command; did you mean 'report'?"),
        (["model=hub"], "model=hub needs model.hub_id=OWNER/NAME"),
        (["tracking.uri=foo://bar"], "tracking.uri=foo://bar: MLflow can't use it"),
        (["hydra.launcher.n_jobs=0"], "n_jobs=0: must be at least 1, or auto"),
        (["report", "nothing"], "no store there yet"),
        (["report", "a", "b"], "takes one study at most"),
        (["report", "a", "--jsn"], "report --jsn: no such option; did you mean '--json'?"),
        (["report", "a", "--json=1"], "report --json=1: no such option; did you mean '--json'?"),
        (["export", "--to=a", "--to=b"], "export --to=b: no such option; did you mean '--to'?"),
        (["doctor", "prove"], "doctor prove: no such option; did you mean '--prove'?"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    streams = capsys.readouterr()
    assert said in streams.err
    assert streams.err.startswith("ftmatrix: ")
    assert streams.err.count("\n") == 1
    assert not streams.out
    assert not list(tmp_path.glob(".ftmatrix/cells"))


def test_an_interrupt_leaves_no_process_and_no_running_run(tmp_path: Path, data_folder: Path) -> None:
    program = [sys.executable, "-c", "from ftmatrix.cli import main; main()"]
    arguments = ["lr=1e-3,2e-3", "data=csv", f"data.path={data_folder}", "training.epochs=300", "n_jobs=2"]
    with subprocess.Popen(
        [*program, *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("start ")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, while the libraries are still being imported
        told, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped: 0 of 2 cells are over, " in told
    assert said == "interrupted; the same command goes on where this one stopped\n"
    store = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = store.search_experiments(filter_string="name = 'ftmatrix'")
    runs = store.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"KILLED"}
    assert not [line for line in processes() if str(data_folder) in line or f"cwd={tmp_path}" in line]


def processes() -> list[str]:
    """Working directory and command line of every process (Linux)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.append(f"cwd={(folder / 'cwd').readlink()} {(folder / 'cmdline').read_text()}")
    return found


def test_help_names_every_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    said = capsys.readouterr().out
    for word in ("full", "qlora", "gemma3-270m", "banking77", "model=local", "experiment=", "Exit code"):
        assert word in said


def test_help_names_every_setting_with_its_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    settings = {setting.key: setting for setting in documented_settings()}
    assert set(settings) == set(every_setting())
    for key, setting in settings.items():
        assert setting.text, f"{key} has no docstring"
        assert f"{key}={' '.join(setting.default.split())} {setting.text}".replace("= ", "=") in said.replace("= ", "=")


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"ui"}))
def test_each_command_tells_of_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"ftmatrix {name}")
    assert all(option in said for option in COMMANDS[name].options)


def test_the_composed_configuration_is_shown(tmp_path: Path) -> None:
    shown = ftmatrix("--cfg", "job", "method=lora", "method.r=4", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "  r: 4" in shown.stdout


def test_a_surprise_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert run(["work_dir=file/below"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("ftmatrix: unexpected ")
    assert said.count("\n") == 1


def test_help_and_errors_wait_for_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys; from ftmatrix.cli import run; codes = [run(['--help']), run(['method=lorra']), run(['lr=5'])];"
        "heavy = {'torch', 'transformers', 'mlflow', 'peft', 'sklearn'} & set(sys.modules);"
        "sys.exit(str((codes, heavy)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "([0, 2, 2], set())"


def test_a_traceback_is_shown_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTMATRIX_TRACEBACK", "1")
    with pytest.raises(Exception, match="lr=5"):
        run(["lr=5"])
