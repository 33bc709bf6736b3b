"""The wheel holds all that a user outside the checkout needs, and runs there."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ftmatrix.spec import PACKAGE

CHECKOUT = PACKAGE.parents[1]


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(CHECKOUT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    program = (
        "import ftmatrix, sys; from ftmatrix.cli import run; print(ftmatrix.__file__); sys.exit(run(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "plan", "experiment=pocket"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, *lines = done.stdout.splitlines()
    assert where.startswith(str(tmp_path / "site"))
    assert sum(line.startswith("pocket-1m") and line.endswith("run") for line in map(str.strip, lines)) == 6
