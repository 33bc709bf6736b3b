"""Records as strict JSON: what is written can be read, by this program's newer versions too, and by others."""

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ftmatrix.records import (
    CellResult,
    Durations,
    Forgetting,
    Outcome,
    Phase,
    PhasePeak,
    Stability,
    Step,
    Verdict,
    as_plain,
    from_json,
    record_of,
    to_json,
)
from ftmatrix.records.schema import result_schema
from ftmatrix.sweep import sweep

SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "result.json"
BROKEN = CellResult(
    Outcome.COMPLETED,
    phase=Phase.TRAIN,
    stability=Stability(Verdict.DIVERGED, 3, "loss", math.inf),
    peaks=(PhasePeak("train", None, "resident set"),),
    seconds=Durations(1.0, 2.0, math.nan),
    forgetting=Forgetting(1.5, math.inf),
)


def test_the_committed_schema_is_that_of_the_records() -> None:
    assert json.loads(SCHEMA.read_text()) == result_schema(), (
        "python -m ftmatrix.records.schema > docs/schemas/result.json"
    )


def test_numbers_that_arent_finite_are_named_and_come_back() -> None:
    text = to_json(BROKEN)
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert content["schema_version"] == 1
    assert content["forgetting"] == {"nll_initial": 1.5, "nll": "Infinity"}
    assert content["seconds"]["evaluate"] == "NaN"
    jsonschema.validate(content, result_schema())
    found = from_json(CellResult, text)
    assert found.seconds is not None
    assert math.isnan(found.seconds.evaluate)
    assert found.forgetting == BROKEN.forgetting
    assert found.stability == BROKEN.stability
    assert found.peaks == BROKEN.peaks


def test_a_step_that_isnt_finite_stays_so() -> None:
    step = Step(0, 1e-3, math.nan, math.inf, 10, 5, 0.1)
    read = record_of(Step, json.loads(json.dumps(as_plain(step), allow_nan=False)))
    assert math.isnan(read.loss)
    assert read.grad_norm == math.inf


def test_records_of_older_programs_are_read() -> None:
    old = '{"outcome": "completed", "forgetting": {"nll_initial": NaN, "nll": Infinity}, "seconds": null}'
    found = from_json(CellResult, old)
    assert found.forgetting is not None
    assert math.isnan(found.forgetting.nll_initial)
    assert found.forgetting.nll == math.inf


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"schema_version": 2}, r"a newer ftmatrix wrote this CellResult \(schema 2; this one reads up to 1\)"),
        ({"schema_version": "2"}, "schema_version is '2', and no number"),
        ({"schema_version": None}, "schema_version is None, and no number"),
        ({"outcome": "fine"}, "outcome"),
        ({"steps": "many"}, "steps"),
        ({"forgetting": {"nll": 1.0}}, "nll_initial"),
    ],
)
def test_what_is_no_such_record_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_json(CellResult, json.dumps(json.loads(to_json(BROKEN)) | changed))


def test_a_real_cells_result_is_of_the_schema(quick_cell: Any, tmp_path: Path) -> None:
    (row,) = sweep([quick_cell("lr=1e-3")], n_jobs=1)
    (file,) = tmp_path.rglob("mlartifacts/**/result.json")
    jsonschema.validate(json.loads(file.read_text()), json.loads(SCHEMA.read_text()))
    assert row is not None
