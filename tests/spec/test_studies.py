"""Studies are found by their folder and by the name that their runs have."""

from pathlib import Path

import pytest

from ftmatrix.spec import claims_of, known_studies, study_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "experiments" / "rates"
    folder.mkdir(parents=True)
    (folder / "grid.yaml").write_text("# @package _global_\nstudy: my_rates\n")
    return folder


def test_a_study_is_known_by_its_folder_and_by_its_name(folder: Path) -> None:
    assert (study_of("rates"), study_of("my_rates"), study_of("pocket")) == ("my_rates", "my_rates", "pocket")
    assert claims_of("my_rates") is None
    (folder / "claims.yaml").write_text("{}")
    assert claims_of("my_rates") == claims_of("rates") == folder / "claims.yaml"


@pytest.mark.parametrize("grid", ["hydra: {mode: MULTIRUN}", "- no mapping", "study: [", ""])
def test_a_grid_without_a_name_has_its_folders(grid: str, folder: Path) -> None:
    (folder / "grid.yaml").write_text(grid)
    assert study_of("rates") == "rates"


def test_studies_of_the_working_directory_come_first(folder: Path) -> None:
    assert known_studies()["rates"] == folder
    assert "lr_finding" in known_studies()
