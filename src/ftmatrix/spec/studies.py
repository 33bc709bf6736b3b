"""Studies: folders of experiments/ with a grid, and with claims if they have some."""

from pathlib import Path

import yaml

from ftmatrix.spec.places import experiments_root


def known_studies() -> dict[str, Path]:
    """The studies by name: those of the working directory, then those of ftmatrix itself."""
    found = [path.parent for root in (Path.cwd(), experiments_root()) for path in root.glob("experiments/*/grid.yaml")]
    return {folder.name: folder for folder in reversed(found)}


def study_of(word: str) -> str:
    """The study that a grid's runs are recorded under; the word itself where no folder has that name."""
    folder = known_studies().get(word)
    return _recorded_as(folder) if folder else word


def claims_of(study: str) -> Path | None:
    """The file of a study's claims, if it has one."""
    return next((claims for folder in _folders(study) if (claims := folder / "claims.yaml").exists()), None)


def results_of(study: str) -> Path:
    """Where a study's results are kept: in its folder, if the working directory has that; else right there."""
    here = [folder for folder in _folders(study) if folder.is_relative_to(Path.cwd())]
    return (here[0].relative_to(Path.cwd()) if here else Path()) / "results.csv"


def _folders(study: str) -> list[Path]:
    """The folders whose cells are recorded under a study."""
    return [folder for name, folder in known_studies().items() if study in (name, _recorded_as(folder))]


def _recorded_as(folder: Path) -> str:
    """The study that a folder's grid names; its own name where the grid names none, or can't be read."""
    try:
        grid = yaml.safe_load((folder / "grid.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return folder.name
    named = grid.get("study") if isinstance(grid, dict) else None
    return str(named) if named else folder.name
