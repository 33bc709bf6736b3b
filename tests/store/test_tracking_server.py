"""Many writers at once: a real PostgreSQL behind a real MLflow server, by docs/tracking-server/compose.yaml."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

COMPOSE = Path(__file__).parents[2] / "docs" / "tracking-server" / "compose.yaml"
RATES = ("1e-3", "2e-3", "3e-3", "4e-3")
pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def programs() -> Path:
    """PostgreSQL's programs; without them the test is skipped, but never in CI."""
    known = [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), Path(shutil.which("initdb") or "none").parent]
    for folder in reversed(known):
        if (folder / "initdb").exists():
            return folder
    if os.environ.get("FTMATRIX_NEEDS_POSTGRES"):
        pytest.fail("PostgreSQL's initdb isn't here")
    pytest.skip("no PostgreSQL on this machine: install the system's package postgresql")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL on loopback, and its address as MLflow takes it."""
    found, folder, port = programs(), tmp_path_factory.mktemp("postgres"), free_port()
    as_its_user: list[str] = []
    if os.geteuid() == 0:  # which it refuses
        as_its_user = ["runuser", "-u", "postgres", "--"]
        folder = Path("/tmp") / f"ftmatrix-postgres-{os.getpid()}"  # in reach of that user
        folder.mkdir()
        os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
    data = folder / "data"
    try:
        initdb = [*as_its_user, f"{found}/initdb", f"--pgdata={data}", "--username=mlflow", "--auth=trust"]
        subprocess.run(initdb, check=True, capture_output=True, cwd="/")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
        control = [*as_its_user, f"{found}/pg_ctl", f"--pgdata={data}", "--wait"]
        started = [*control, f"--options={options}", f"--log={folder}/log", "start"]
        subprocess.run(started, check=True, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
        subprocess.run([*control, "--mode=immediate", "stop"], check=True, cwd="/", capture_output=True)
    finally:
        if as_its_user:
            shutil.rmtree(folder)


@pytest.fixture
def server(database: str, tmp_path: Path) -> Iterator[str]:
    """MLflow's server, by the compose file's own command."""
    port = free_port()
    program, *words = yaml.safe_load(COMPOSE.read_text())["services"]["mlflow"]["command"]
    here = {"--backend-store-uri": database, "--artifacts-destination": str(tmp_path / "artifacts")}
    here |= {"--host": "127.0.0.1", "--port": str(port)}
    words = [f"{key}={here[key]}" if (key := word.partition("=")[0]) in here else word for word in words]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", program, *words], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_four_writers_on_one_server(server: str, tmp_path: Path, messages_folder: Path) -> None:
    words = ("method=full", f"lr={','.join(RATES)}", "seed=0,1", "training.epochs=2", "data=csv")
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ftmatrix"),
            "hydra/launcher=joblib",
            "n_jobs=4",
            *words,
            f"data.path={messages_folder}",
        ],
        cwd=tmp_path,
        env=os.environ | {"MLFLOW_TRACKING_URI": server},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(tracking_uri=server)
    experiment = client.get_experiment_by_name("ftmatrix")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.complete = 'true'")
    assert {(run.data.tags["lr"], run.data.tags["seed"]) for run in runs} == {
        (f"{float(rate):g}", seed) for rate in RATES for seed in "01"
    }
    assert len(runs) == 8
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "step/loss")
        assert sorted(point.step for point in history) == list(range(int(run.data.metrics["steps"])))
        assert {"predictions.csv", "result.json"} <= {file.path for file in client.list_artifacts(run.info.run_id)}
    (sweep,) = client.search_runs([experiment.experiment_id], "tags.kind = 'sweep'")
    assert "report" in {file.path for file in client.list_artifacts(sweep.info.run_id)}
