"""Records the curves that other machines are held against: `python -m ftmatrix.doctor`, on a CPU."""

import json
import tempfile
from pathlib import Path

from ftmatrix.doctor.proof import CURVES, record
from ftmatrix.doctor.subjects import GEMMA, POCKET

if __name__ == "__main__":
    curves = json.loads(CURVES.read_text()) if CURVES.exists() else {}
    for subject in (POCKET, GEMMA):
        with tempfile.TemporaryDirectory() as folder:
            curves[subject.model] = record(subject, Path(folder), print)
        CURVES.write_text(json.dumps(curves, indent=1) + "\n")
