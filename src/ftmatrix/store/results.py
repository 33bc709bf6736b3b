"""The whole result of a run, from its files in the store."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from ftmatrix.cell import judged_anew, may_be_outdated
from ftmatrix.errors import ConfigError, first_line
from ftmatrix.lm import Training
from ftmatrix.records import CellResult, Row, Step, from_json


def read_result(row: Row, uri: str) -> CellResult:
    """What the cell's process wrote down, as it stands in the store at `uri`.

    Raises:
        ConfigError: the run's files are gone, as in a store that was copied without them, or can't be read.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException
    from mlflow.utils.uri import append_to_uri_path

    place = append_to_uri_path(row.artifact_uri, "result.json")
    with TemporaryDirectory() as folder:  # by its address: by its run's id MLflow would read the run again
        try:
            path = download_artifacts(place, dst_path=folder, tracking_uri=uri)
        except (MlflowException, OSError) as error:
            raise ConfigError(f"run {row.run_id}: {place} isn't there") from error
        try:
            return from_json(CellResult, Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"run {row.run_id}: {place} can't be read ({first_line(error)})") from error


def judged_by_present_rules(stored: CellResult, row: Row, curve: Callable[[str], list[float]]) -> CellResult:
    """A result whose verdict may be one of older rules, judged anew by its steps; `curve` gives a series of them."""
    if stored.stability is None or not may_be_outdated(stored.stability, epoch_steps=row.epoch_steps):
        return stored
    series = [curve(name) for name in ("loss", "grad_norm", "label_tokens")]
    if len({len(values) for values in series}) > 1:
        return stored  # not all of its steps were kept
    steps = [
        Step(index, row.lr, loss, norm, 0, int(tokens), 0.0)
        for index, (loss, norm, tokens) in enumerate(zip(*series, strict=True))
    ]
    training = Training(
        batch_size=int(row.settings["training.batch_size"]),
        warmup_fraction=float(row.settings["training.warmup_fraction"]),
    )
    warmup = training.warmup_steps(len(steps))
    return judged_anew(stored, steps, warmup_steps=warmup, batch_size=training.batch_size)
