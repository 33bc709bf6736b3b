"""The card of saved weights: its program answers as the cell did."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.artifacts import download_artifacts

from ftmatrix.cell.model_card import FOUR_BIT_BASE, model_card
from ftmatrix.lm import Framer
from ftmatrix.models import load_tokenizer
from ftmatrix.records import CellResult, Outcome
from ftmatrix.spec import Cell, ReadyCell, prepare
from ftmatrix.store import Store
from ftmatrix.sweep import sweep


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_cards_program_answers_as_the_cell_did(
    method: str, quick_cell: Callable[..., Cell], tmp_path: Path
) -> None:
    lr, epochs = {"full": ("5e-3", 1), "lora": ("2e-2", 4)}[method]
    cell = quick_cell(
        f"method={method}", f"lr={lr}", f"training.epochs={epochs}", "save_model=true", "data.test_limit=40"
    )
    (row,) = sweep([cell], n_jobs=1)
    assert row is not None
    store = Store(str(cell.tracking.uri), cell.study, create=False)
    test = store.result(row).test
    assert test is not None
    folder = Path(download_artifacts(f"{row.artifact_uri}/model", dst_path=str(tmp_path), tracking_uri=store.uri))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{test.accuracy:.1%}" in card
    assert '"{text}\\nIntent:"' in card
    assert all(f"`{intent.intent}`" in card for intent in test.intents)
    assert FOUR_BIT_BASE not in card
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    one = next(prediction for prediction in test.predictions if prediction.valid)
    assert "My card has not arrived yet." in program
    program = program.replace("'My card has not arrived yet.'", repr(one.text))
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == one.answer.replace("_", " ")


def test_an_adapter_of_a_quantised_base_says_so(quick_cell: Callable[..., Cell]) -> None:
    (ready,) = prepare([quick_cell("method=qlora")])
    assert isinstance(ready, ReadyCell)
    framer = Framer(ready.cell.framing, load_tokenizer(ready.checkpoint), ready.dataset.labels)
    assert FOUR_BIT_BASE in model_card(ready, CellResult(Outcome.COMPLETED), framer)
