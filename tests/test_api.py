"""`import ftmatrix`: the same cells, figures and refusals as the command line."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ftmatrix
from ftmatrix.errors import ConfigError
from ftmatrix.records import CellResult, Phase, Step
from ftmatrix.spec import ReadyCell


@pytest.fixture
def study(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapters_preloaded: None
) -> dict[str, Any]:
    """Settings of two cells on the small data folder, in a working directory of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return {
        "study": "mine",
        "method": ["full", "lora"],
        "lr": 1e-3,
        "data": "csv",
        "data.path": data_folder,
        "training": {"epochs": 1},
    }


def test_a_study_from_plan_to_answer(study: dict[str, Any], tmp_path: Path) -> None:
    planned = ftmatrix.plan(**study)
    assert list(planned.action) == ["run", "run"]
    assert (planned.peak_bytes > 0).all()
    assert not (tmp_path / "mlflow.db").exists()

    cells = ftmatrix.run(**study, save_model=True)
    assert list(cells.method) == ["full", "lora"]
    assert list(cells.outcome) == ["completed", "completed"]
    assert all(action.startswith("done") for action in ftmatrix.plan(**study, save_model=True).action)
    again = ftmatrix.run(**study, save_model=True)  # taken as they are
    assert list(again.run_id) == list(cells.run_id)

    known = ftmatrix.results("mine")
    assert known.equals(cells)

    report = ftmatrix.report("mine")
    assert report.page == Path("reports/mine/report.html")
    assert report.page.exists()
    assert report.claims == {}
    assert report._repr_markdown_() == report.markdown
    assert "lora" in report.markdown

    model = ftmatrix.load("mine", run_id=str(cells.run_id[1]))
    (answer,) = model.predict(["where is my card?"])
    assert answer in model.evaluator.framer.labels
    with pytest.raises(ConfigError, match="run_id=nosuch: no such run in sqlite"):
        ftmatrix.load("mine", run_id="nosuch")
    with pytest.raises(ConfigError, match="other: no such study"):
        ftmatrix.load("other", run_id=str(cells.run_id[1]))

    done = subprocess.run(
        [sys.executable, "-c", "from ftmatrix.cli import main; main()", "export", "mine", "--to", "results.csv"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    from_file = ftmatrix.results(file="results.csv")
    assert list(from_file.accuracy) == list(cells.accuracy)
    assert ftmatrix.report(file="results.csv").page == report.page


def test_a_listener_hears_of_cells_and_may_stop_one(study: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    class Follower(ftmatrix.Listener):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def began(self, ready: ReadyCell) -> None:
            self.heard.append("began")

        def entered(self, ready: ReadyCell, phase: Phase) -> None:
            self.heard.append(phase.value)

        def stepped(self, ready: ReadyCell, steps: tuple[Step, ...]) -> str | None:
            self.heard.append("stepped")
            return "enough was seen" if ready.cell.training.epochs == 400 else None

        def ended(self, ready: ReadyCell, result: CellResult) -> None:
            self.heard.append(result.outcome.value)

    class Broken(ftmatrix.Listener):
        def began(self, ready: ReadyCell) -> None:
            raise LookupError("its own affair")

    one = study | {"method": "full", "report": False}
    follower = Follower()
    (outcome,) = ftmatrix.run(**one, listeners=[Broken(), follower]).outcome
    assert outcome == "completed"
    assert "Broken hears no more: LookupError: its own affair" in capsys.readouterr().out
    assert follower.heard[0] == "began"
    assert follower.heard[-1] == "completed"
    assert {"load", "train", "evaluate", "stepped"} <= set(follower.heard)

    long = one | {"training": {"epochs": 400}}
    cells = ftmatrix.run(**long, listeners=[Follower()])
    assert list(cells.outcome) == ["interrupted"]
    assert cells.reason[0].startswith("enough was seen; stopped after step ")
    assert "the same command goes on from there" in cells.reason[0]


def test_a_cell_that_fails_is_a_row(study: dict[str, Any]) -> None:
    cells = ftmatrix.run(**study | {"method": "full", "model": "local", "model.path": "/nowhere"}, report=False)
    assert list(cells.outcome) == ["missing model"]
    assert "/nowhere" in cells.reason[0]


def test_what_is_wrong_is_refused_before_anything_runs(study: dict[str, Any], tmp_path: Path) -> None:
    for wrong, line in (
        ({"lr": 5}, "lr=5: a learning rate must lie in"),
        ({"methd": "full"}, "methd: no such setting; did you mean 'method'"),
        ({"plan": True}, r"ftmatrix.plan\(...\) plans"),
        ({"n_jobs": 0}, "n_jobs=0: must be at least 1"),
        ({"grids": {"lr": 1e-3}}, "give a list of dicts"),
        ({"hydra/launcher": "joblib", "listeners": [ftmatrix.Listener()]}, "listeners hear of cells that run here"),
    ):
        with pytest.raises(ConfigError, match=line):
            ftmatrix.run(**study | wrong)
    with pytest.raises(ConfigError, match="no store there yet"):
        ftmatrix.results("mine")
    with pytest.raises(ConfigError, match="no such file"):
        ftmatrix.results(file="results.csv")
    with pytest.raises(ConfigError, match="names its own study"):
        ftmatrix.report("mine", file="results.csv")
    assert not (tmp_path / "mlflow.db").exists()


def test_importing_it_is_cheap() -> None:
    program = (
        "import ftmatrix, sys; print(sorted({'torch', 'hydra', 'mlflow', 'pandas', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(dir(ftmatrix)) == {"Listener", "Report", "load", "plan", "report", "results", "run"}
    assert ftmatrix.__version__
