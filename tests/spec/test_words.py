"""Settings from Python come to the same cells as on the command line."""

from pathlib import Path
from typing import Any

import pytest

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
    grids = [{"method": "full", "lr": [1e-5, 5e-5]}, {"method": "lora", "lr": 2e-4}]
    cells = ask(list(words_of({"grids": grids, "seed": [0, 1]}))).cells
    assert {(cell.method.name, cell.lr, cell.seed) for cell in cells} == {
        (method, lr, seed) for method, lr in (("full", 1e-5), ("full", 5e-5), ("lora", 2e-4)) for seed in (0, 1)
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.path", "/a folder/b,c='d\"{e}[f]$g\\h"),
        ("data.path", "ends in a backslash\\"),
        ("data.path", "it's \\'quoted\\'"),
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


def test_a_study_is_asked_for_by_name() -> None:
    assert len(ask(["experiment=pocket"]).cells) == 12
    assert {cell.method.name for cell in ask(["experiment=pocket", "method=lora"]).cells} == {"lora"}
