"""Every example of docs/extending.md, put where the page says, in a copy of this program."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ftmatrix.spec import PACKAGE

ROOT = Path(__file__).parents[1]
EXAMPLE = re.compile(r"`((?:src|conf|tests)/[\w./-]+)`:\n+```(?:python|yaml)\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with src and conf: links to this program's files, and the examples."""
    root = tmp_path_factory.mktemp("extended")
    examples = dict(EXAMPLE.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8")))
    assert len(examples) == 12, sorted(examples)
    for source, target in ((PACKAGE, root / "src" / "ftmatrix"), (ROOT / "conf", root / "conf")):
        for path in source.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                link = target / path.relative_to(source)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
    (root / "experiments").symlink_to(ROOT / "experiments")
    for name, text in examples.items():
        assert not (root / name).exists()
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    schemas = root / "src" / "ftmatrix" / "data" / "schemas.py"
    text = schemas.read_text().replace('    "csv"', '    "lines": Lines,\n    "csv"')
    schemas.unlink()
    schemas.write_text(text.replace("\nDATA_SCHEMAS", "from ftmatrix.data.lines import Lines\n\nDATA_SCHEMAS", 1))
    (root / "tests" / "conftest.py").symlink_to(ROOT / "tests" / "conftest.py")
    return root


def test_the_examples_tests_pass(extended: Path, tmp_path: Path) -> None:
    program = "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    said = python_in(
        extended, tmp_path, program, "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(extended / "tests")
    )
    assert "3 passed" in said


def in_it(root: Path, folder: Path, *arguments: str) -> str:
    """What the extended program's command prints."""
    return python_in(root, folder, "from ftmatrix.cli import main; main()", *arguments)


def python_in(root: Path, folder: Path, program: str, *arguments: str) -> str:
    path = os.pathsep.join([str(root / "src"), str(ROOT / "src")])  # the launcher's plugin is this program's own
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_cell_of_the_examples_runs(extended: Path, tmp_path: Path, data_folder: Path) -> None:
    import pandas

    for split in ("train", "test"):
        frame = pandas.read_csv(data_folder / f"{split}.csv")
        lines = [f"{label}\t{text}" for text, label in zip(frame["text"], frame["category"], strict=True)]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines), encoding="utf-8")
    said = in_it(
        extended,
        tmp_path,
        "method=last_layers,lora-small",
        "data=lines",
        f"data.path={tmp_path}",
        "training.epochs=1",
        "hydra/launcher=threads",
        "report=false",
    )
    assert "2 cells go to threads" in said
    assert "last_layers" in said
    assert "lora-small" in said
    columns = ["method", "outcome", "balanced_accuracy", "val_balanced_accuracy", "trainable_parameters"]
    program = f"import ftmatrix; print(ftmatrix.results()[{columns}].to_json(orient='records'))"
    said = python_in(extended, tmp_path, program)
    rows = {row["method"]: row for row in json.loads(said)}
    assert {row["outcome"] for row in rows.values()} == {"completed"}
    assert all(0 <= row["balanced_accuracy"] <= 1 and 0 <= row["val_balanced_accuracy"] <= 1 for row in rows.values())
    assert 0 < rows["lora-small"]["trainable_parameters"] < rows["last_layers"]["trainable_parameters"] < 500_000


def test_the_others_are_offered(extended: Path, tmp_path: Path) -> None:
    helped = in_it(extended, tmp_path, "--help")
    assert "tiny-llama" in helped
    assert "method.depth=1" in helped
    study = tmp_path / "experiments" / "mine"
    study.mkdir(parents=True)
    (study / "grid.yaml").write_text("# @package _global_\nstudy: mine\n")
    claim = {
        "statement": "it costs little",
        "statistic": "forgetting_at_most",
        "factor": 1.2,
        "cells": {"method": "full", "lr": 0.001},
    }
    (study / "claims.yaml").write_text(yaml.safe_dump({"little": claim}))
    in_it(
        extended,
        tmp_path,
        "method=full",
        "lr=1e-3",
        "study=mine",
        "data.limit=60",
        "data.test_limit=30",
        "training.epochs=1",
    )
    assert "it costs little" in in_it(extended, tmp_path, "report", "mine")
