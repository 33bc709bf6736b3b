"""The notebook, run as a reader would run it."""

import json
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_study.ipynb"


def test_the_notebook_runs(tmp_path: Path) -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in cells), "it is kept with what it showed"
    lines = ["import matplotlib", "matplotlib.use('agg')", *("".join(cell["source"]) for cell in cells)]
    shown = "print(list(cells.outcome), model.predict(['my new card still has not come']), report.page.exists())"
    (tmp_path / "notebook.py").write_text("\n".join([*lines, shown]))  # without a guard: cells don't run it again
    done = subprocess.run(
        [sys.executable, "notebook.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[-1]
    assert said.startswith("['completed', 'completed', 'completed', 'completed'] ['")
    assert said.endswith("True")
