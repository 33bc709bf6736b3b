"""Configuration: every YAML composes, every range is checked, and identity holds what decides a result."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import RunMode

from ftmatrix.arms import FullFineTuning, Lora, Quantization
from ftmatrix.errors import ConfigError
from ftmatrix.spec import Cell, Composer, cell_from, config_folder, expand, experiments_root, options, register_schemas
from ftmatrix.spec.overrides import GROUPS, grids

MakeCell = Callable[..., Cell]


@pytest.mark.parametrize("choice", [f"{group}={name}" for group in GROUPS for name in options(group)])
def test_every_yaml_composes(choice: str, make_cell: MakeCell) -> None:
    needed = ["model.path=."] if choice == "model=local" else ["model.hub_id=a/b"] if choice == "model=hub" else []
    cell = make_cell(choice, *needed)
    group, name = choice.split("=")
    assert getattr(cell, group).name == name


@pytest.mark.parametrize("name", list(grids()))
def test_every_study_composes_and_each_of_its_axes_does(name: str, hydra_config: Callable[..., Any]) -> None:
    config = hydra_config(f"experiment={name}")
    assert config.hydra.mode.name == "MULTIRUN"
    for axis, values in config.hydra.sweeper.params.items():
        for value in str(values).split(","):
            cell_from(hydra_config(f"experiment={name}", f"{axis}={value}"))


def test_a_grid_composes_as_hydra_composes_each_of_its_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_grid(tmp_path)
    monkeypatch.chdir(tmp_path)
    register_schemas()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", ["+experiments=mine/grid"], RunMode.MULTIRUN)
        composer = Composer(loader, master)
        jobs = [
            ["method=lora", "lr=3e-4", "seed=2", "training.max_grad_norm=null"],
            ["lr=1e-2", "method=qlora", "method.r=4", "model=pocket-4m", "training.schedule=cosine"],
            ["data=csv", "data.path='a b'", "data.confusion_pair=[x,y]", "tracking.sweep=a"],
            ["training={epochs:2}", "~training.weight_decay"],
        ]
        for job in jobs:
            overrides = ["+experiments=mine/grid", *job]
            try:
                expected: object = cell_from(loader.load_sweep_config(master, overrides))
            except (ConfigError, HydraException) as error:
                with pytest.raises(type(error), match=re.escape(str(error))):
                    composer.cell(overrides)
            else:
                assert composer.cell(overrides) == expected
        with pytest.raises(ConfigCompositionException, match=r"training\.no_such"):
            composer.cell(["training.no_such=1"])


def write_grid(folder: Path) -> None:
    grid = folder / "experiments" / "mine" / "grid.yaml"
    grid.parent.mkdir(parents=True)
    grid.write_text("# @package _global_\ndefaults: [{override /method: lora}]\nlr: 5e-3\ntraining: {epochs: 7}\n")


@pytest.mark.parametrize("choice", [f"{group}={name}" for group in GROUPS for name in options(group)])
def test_a_key_that_no_field_reads_is_refused(choice: str, hydra_config: Callable[..., Any]) -> None:
    with pytest.raises(ConfigCompositionException):
        hydra_config(choice, f"{choice.split('=')[0]}.no_such_key=1")


def test_methods_are_their_own_strategies(make_cell: MakeCell) -> None:
    assert isinstance(make_cell("method=full").method, FullFineTuning)
    qlora = make_cell("method=qlora", "method.r=4").method
    assert isinstance(qlora, Lora)
    assert (qlora.quantize, qlora.r) == (Quantization.nf4, 4)


@pytest.mark.parametrize("spelling", ["1e-4", "0.0001", "1.0e-4"])
def test_a_rate_is_a_number_however_it_is_spelt(spelling: str, make_cell: MakeCell) -> None:
    assert make_cell(f"lr={spelling}").lr == 1e-4


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lr=0", r"lr=0: a learning rate must lie in \(0, 1\]"),
        ("lr=-1e-4", "lr=-0.0001"),
        ("lr=nan", "lr=nan"),
        ("lr=7", "lr=7"),
        ("seed=-1", "seed=-1: must lie in"),
        ("threads=0", "threads=0: must be at least 1"),
        ("study=a/b", "study='a/b': use letters"),
        ("model.attention=flash", "model.attention=flash: available"),
        ("evaluation.batch_size=0", "evaluation.batch_size=0"),
        ("framing.max_length=2", "framing.max_length=2"),
        ("model.hub_id=a/b/c", "model.hub_id=a/b/c: must be OWNER/NAME"),
    ],
)
def test_values_out_of_range_are_refused(override: str, said: str, make_cell: MakeCell) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        make_cell(override)
    assert "\n" not in str(refused.value)


def test_a_model_needs_its_source(make_cell: MakeCell) -> None:
    with pytest.raises(ConfigError, match=r"model=local needs model.path=DIR"):
        make_cell("model=local")
    with pytest.raises(ConfigError, match=r"model=hub needs model.hub_id=OWNER/NAME"):
        make_cell("model=hub")


def test_an_adapter_needs_pretrained_weights(make_cell: MakeCell) -> None:
    with pytest.raises(ConfigError, match="take method=full"):
        make_cell("method=lora", "model.from_scratch=true")


def test_an_unknown_study_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="experiment=pockte: no such study; did you mean 'pocket'"):
        expand(["experiment=pockte"])


def test_a_study_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiments" / "mine").mkdir(parents=True)
    (tmp_path / "experiments" / "mine" / "grid.yaml").write_text("# @package _global_\nstudy: mine\n")
    monkeypatch.chdir(tmp_path)
    assert {"mine", "pocket"} <= set(grids())
    assert (experiments_root() / "experiments" / "pocket" / "grid.yaml").exists()
