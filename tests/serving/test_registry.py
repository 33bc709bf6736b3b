"""The best cell of a study in MLflow's registry, and served by MLflow's own server."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pandas
import pytest

from ftmatrix.errors import ConfigError
from ftmatrix.records import Row
from ftmatrix.serving import register_best
from ftmatrix.spec import Cell
from ftmatrix.store import Store
from ftmatrix.sweep import sweep

QuickCell = Callable[..., Cell]


@pytest.fixture
def store(quick_cell: QuickCell) -> Store:
    return Store(str(quick_cell().tracking.uri), "ftmatrix")


def answers(store: Store, row: Row, folder: Path) -> tuple[list[str], list[str]]:
    """The test messages and what the cell answered, within the label set."""
    written = pandas.read_csv(store.client.download_artifacts(row.run_id, "predictions.csv", str(folder)))
    return written["text"].tolist(), written["constrained_answer"].tolist()


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_registered_model_answers_as_the_cell_did(
    method: str, quick_cell: QuickCell, store: Store, tmp_path: Path
) -> None:
    sweep([quick_cell(f"method={method}", "lr=3e-3", "save_model=true"), quick_cell(f"method={method}", "lr=1e-5")])
    row, version = register_best(store, "intents")
    assert row.lr == 3e-3
    texts, expected = answers(store, row, tmp_path)
    model = mlflow.pyfunc.load_model(f"models:/intents/{version}")
    assert model.predict(texts) == expected
    registered = store.client.get_model_version("intents", version)
    assert registered.run_id == row.run_id
    assert float(registered.tags["val_accuracy"]) == pytest.approx(row.metrics["val_accuracy"], rel=1e-5)
    assert store.client.get_run(row.run_id).info.status == "FINISHED"


def test_without_weights_the_way_to_them_is_told(quick_cell: QuickCell, store: Store) -> None:
    with pytest.raises(ConfigError, match="run a sweep with save_model=true first"):
        register_best(store, "intents")
    sweep([quick_cell("lr=1e-3")])
    with pytest.raises(ConfigError, match=r"method=full model=pocket-1m lr=0\.001 seed=0"):
        register_best(store, "intents")


@pytest.fixture
def served(quick_cell: QuickCell, store: Store, tmp_path: Path) -> Iterator[str]:
    """The address of MLflow's server with a registered cell."""
    sweep([quick_cell("method=lora", "lr=3e-3", "save_model=true")])
    _, version = register_best(store, "intents")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["models", "serve", "-m", f"models:/intents/{version}", "--env-manager", "local", "--port", str(port)]
    with (tmp_path / "server.log").open("w") as log:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # as where the environment is activated
        environment = os.environ | {"MLFLOW_TRACKING_URI": store.uri, "PATH": path}
        process = subprocess.Popen([sys.executable, "-m", "mlflow", *command], env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/ping", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait()


def post(address: str, body: str) -> tuple[int, str]:
    request = urllib.request.Request(
        f"{address}/invocations", data=body.encode(), headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_mlflows_server_answers_messages_and_refuses_what_is_none(served: str, store: Store, tmp_path: Path) -> None:
    (row,) = [row for row in store.cells() if row.keeps_weights]
    texts, expected = answers(store, row, tmp_path)
    status, said = post(served, json.dumps({"inputs": texts[:3]}))
    assert (status, json.loads(said)) == (200, {"predictions": expected[:3]})
    (shown,) = re.findall(r"curl .* -d '(.*)' http", (Path(__file__).parents[2] / "README.md").read_text())
    status, said = post(served, shown)
    assert (status, len(json.loads(said)["predictions"])) == (200, 1)
    for wrong in (
        '{"inputs": []}', '{"inputs": [""]}', '{"inputs": ["where is my card", " "]}', '{"inputs": null}',
        '{"inputs": [1, 2]}', '{"inputs": {"a": "b"}}', '{"messages": ["where is my card"]}', "where",
    ):  # fmt: skip
        status, said = post(served, wrong)
        assert 400 <= status < 500, (wrong, said)
