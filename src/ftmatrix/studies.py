"""Studies: folders of experiments/ with a grid, and with claims if they have some."""

from pathlib import Path

from ftmatrix.config import experiments_root


def studies() -> dict[str, Path]:
    """The studies by name: those of the working directory, then those of ftmatrix itself."""
    found = [path.parent for root in (Path.cwd(), experiments_root()) for path in root.glob("experiments/*/grid.yaml")]
    return {folder.name: folder for folder in reversed(found)}


def claims_of(study: str) -> Path | None:
    """The file of a study's claims, if it has one."""
    folder = studies().get(study)
    claims = folder / "claims.yaml" if folder else None
    return claims if claims and claims.exists() else None
