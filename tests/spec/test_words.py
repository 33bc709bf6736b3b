"""Settings from Python come to the same cells as on the command line."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pytest
from hydra.core.config_store import ConfigStore

from ftmatrix.errors import ConfigError
from ftmatrix.spec import ask, words_of


def test_a_grid_is_every_combination() -> None:
    words = list(words_of({"method": ["full", "lora"], "lr": [1e-4, 1e-3], "seed": 0, "training": {"epochs": 2}}))
    assert words == ["method=full,lora", "lr=0.0001,0.001", "seed=0", "training.epochs=2"]
    cells = ask(words).cells
    assert [(cell.method.name, cell.lr) for cell in cells] == [
        ("full", 1e-4),
        ("full", 1e-3),
        ("lora", 1e-4),
        ("lora", 1e-3),
    ]
    assert {cell.training.epochs for cell in cells} == {2}


def test_grids_are_a_union() -> None:
    stated: list[dict[str, Any]] = [{"method": "full", "lr": [1e-5, 5e-5]}, {"method": "lora", "lr": 2e-4}]
    grids = [list(words_of(grid)) for grid in stated]
    cells = ask(list(words_of({"seed": [0, 1]})), grids).cells
    assert {(cell.method.name, cell.lr, cell.seed) for cell in cells} == {
        (method, lr, seed) for method, lr in (("full", 1e-5), ("full", 5e-5), ("lora", 2e-4)) for seed in (0, 1)
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.path", "/a folder/b,c='d\"{e}[f]$g\\h"),
        ("data.path", "ends in a backslash\\"),
        ("data.path", "it's \\'quoted\\'"),
        ("data.path", "a backslash\\\n"),
        ("data.path", Path("some/where")),
        ("data.path", None),
        ("framing.template", "Say: {text}\nIntent="),
        ("training.max_grad_norm", None),
        ("training.gradient_checkpointing", True),
        ("data.confusion_pair", ("card_arrival", "card_delivery_estimate")),
        ("training.precision", "bf16"),
    ],
)
def test_a_value_arrives_as_it_was_given(key: str, value: Any) -> None:
    (cell,) = ask(list(words_of({key: value}))).cells
    part, _, name = key.partition(".")
    found = getattr(getattr(cell, part), name)
    as_yaml = {
        Path("some/where"): "some/where",
        ("card_arrival", "card_delivery_estimate"): ["card_arrival", "card_delivery_estimate"],
    }
    assert getattr(found, "value", found) == as_yaml.get(value, value)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"lrr": 1e-3}, "lrr: no such setting; did you mean 'lr'?"),
        ({"method": ["full", "lorra"]}, "method=lorra: no such method; did you mean 'lora'?"),
        ({"lr": []}, r"lr=\[\]: name at least one value"),
        ({"lr": object}, "lr=.*: a type is no setting"),
        ({"experiment": "nosuch"}, "experiment=nosuch: no such study"),
        ({"lr": 5}, "lr=5: a learning rate must lie in"),
    ],
)
def test_what_is_wrong_is_one_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as refused:
        ask(list(words_of(settings)))
    assert "\n" not in str(refused.value)


def test_a_grids_values_are_taken_as_they_are() -> None:
    grid = {"data.path": ["runs, old", "range(3)", "it's (a)"], "data.confusion_pair": ("a", "b")}
    found = ask([], [list(words_of(grid))]).cells
    assert [cell.data.path for cell in found] == ["runs, old", "range(3)", "it's (a)"]
    assert found[0].data.confusion_pair == ["a", "b"]


def test_numbers_come_from_anywhere() -> None:
    settings = {"lr": numpy.logspace(-5, -3, 3), "seed": range(2), "training": {"epochs": numpy.int64(2)}}
    cells = ask(list(words_of(settings))).cells
    assert sorted({cell.lr for cell in cells}) == pytest.approx([1e-5, 1e-4, 1e-3])
    assert {cell.seed for cell in cells} == {0, 1}
    assert {cell.training.epochs for cell in cells} == {2}
    (cell,) = ask(list(words_of({"lr": numpy.float32(0.5)}))).cells
    assert cell.lr == 0.5


@pytest.mark.parametrize("study", ["2024_11_28", "1e3", "true", "null", "1234e56", ".1", "nan", "a study"])
def test_a_text_stays_a_text(study: str) -> None:
    (cell,) = ask(list(words_of({"study": study}))).cells
    assert cell.study == study


def test_threads_may_ask_at_once() -> None:
    with ThreadPoolExecutor(3) as threads:
        found = threads.map(lambda seed: ask([f"seed={seed}"]).cells[0].seed, range(9))
        assert list(found) == list(range(9))


def test_another_programs_hydra_stays_as_it_is() -> None:
    before = dict(ConfigStore.instance().repo)
    ask(["lr=1e-3"])
    assert dict(ConfigStore.instance().repo) == before


def test_a_yaml_file_that_cant_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments" / "my study").mkdir(parents=True)
    grid = tmp_path / "experiments" / "my study" / "grid.yaml"
    grid.write_text("# @package _global_\nseed: 7\n")
    (cell,) = ask(list(words_of({"experiment": "my study"}))).cells
    assert cell.seed == 7
    grid.write_text("# @package _global_\nseed: [\n")
    with pytest.raises(ConfigError, match="a YAML file can't be read"):
        ask(["experiment=my study"])


def test_a_study_is_asked_for_by_name() -> None:
    assert len(ask(["experiment=pocket"]).cells) == 12
    assert {cell.method.name for cell in ask(["experiment=pocket", "method=lora"]).cells} == {"lora"}
