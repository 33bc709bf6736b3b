"""A cell of the matrix: one experiment with all its settings, typed and checked."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from omegaconf import MISSING

from ftmatrix.arms import METHOD_SCHEMAS, Method
from ftmatrix.data import DATA_SCHEMAS, DataSource
from ftmatrix.errors import ConfigError
from ftmatrix.lm import Evaluating, Framing, Training
from ftmatrix.machine import Device
from ftmatrix.models import Model
from ftmatrix.roles import Declared, command, declared_in, execution, parts_of, resolved, result
from ftmatrix.spec.places import Tracking


@dataclass
class Cell:
    """One experiment: a point of method x model x data x learning rate x seed, with all its settings."""

    method: Method = field(default_factory=Method)
    model: Model = field(default_factory=Model)
    data: DataSource = field(default_factory=DataSource)
    lr: float = result(MISSING)
    """Peak learning rate."""
    seed: int = result(0)
    """Seeds the adapters' initial weights, dropout and the order of the data."""
    training: Training = field(default_factory=Training)
    framing: Framing = field(default_factory=Framing)
    evaluation: Evaluating = field(default_factory=Evaluating)
    study: str = execution("ftmatrix", recorded=True)
    """The MLflow experiment that collects the runs."""
    device: Device = resolved(Device.auto, compared=False)
    """What cells run on; auto: the first that is here."""
    devices: int = result(1, added=True)
    """How many devices work on a cell together: each takes a part of every batch. On a CPU, so many processes."""
    shard: bool = result(False, added=True)
    """Split the weights over the devices (false: each has a copy), for a model that doesn't fit into one."""
    threads: int | None = resolved(None, compared=False)
    """CPU threads of the cell (None: one below 50 million parameters, else all cores). Never depends on what runs
    beside the cell, because it decides the last digits of a loss."""
    save_model: bool = execution(False, recorded=True)
    """Keep the fine-tuned weights as an artifact: the adapter, or the whole model."""
    force: bool = command(False)
    """Run the cell although a finished run of it is in the store."""
    plan: bool = command(False)
    """Show what would run, and run nothing."""
    report: bool = command(True)
    """Write the study's report once the sweep is over, where it ran anything."""
    quiet: bool = command(False)
    """Show no progress: only what is wrong, and the table."""
    device_memory: str | None = command(None)
    """Plan for a device with so much memory, such as 24GiB, that isn't here."""
    fit_check: bool = execution(True)
    """Leave out cells whose forecast doesn't fit into the device's free memory (false: try them)."""
    checkpoint_minutes: float = execution(5.0)
    """Minutes between two saves of a running cell's progress (0: never). Shorter cells save none."""
    work_dir: str = execution(".ftmatrix")
    """Folder for logs and files on their way to MLflow."""
    tracking: Tracking = field(default_factory=Tracking)

    @property
    def title(self) -> str:
        """What run names and tables call the cell."""
        return f"{self.method.name} {self.model.title} lr={self.lr:g} seed={self.seed}"

    def check(self) -> None:
        """Refuse bad settings before anything is loaded.

        Raises:
            ConfigError: names the value, the rule and the way out.
        """
        if not 0 < self.lr <= 1:
            raise ConfigError(f"lr={self.lr:g}: a learning rate must lie in (0, 1]; full fine-tuning starts near 5e-5")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed={self.seed}: must lie in [0, 2**32)")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads={self.threads}: must be at least 1, or null to choose by the model's size")
        if not 0 <= self.checkpoint_minutes < math.inf:
            raise ConfigError(f"checkpoint_minutes={self.checkpoint_minutes:g}: must be 0 (never) or above")
        if self.device_memory is not None:
            parse_bytes(self.device_memory, "device_memory")
            if not self.plan:
                raise ConfigError(f"device_memory={self.device_memory}: only `ftmatrix plan` can imagine a device")
        if not re.fullmatch(r"[\w .-]+", self.study):
            raise ConfigError(f"study={self.study!r}: use letters, digits, spaces, '.', '_' and '-' only")
        if self.model.from_scratch and self.method.trains_adapters:
            raise ConfigError(
                f"model.from_scratch=true with method={self.method.name}: an adapter on random weights learns nothing "
                "worth comparing; take method=full"
            )
        for part in (self.method, self.model, self.data, self.training, self.framing, self.evaluation, self.tracking):
            part.check()
        self._check_devices()

    def _check_devices(self) -> None:
        batch, micro = self.training.batch_size, self.training.micro_batch_size
        if self.devices < 1:
            raise ConfigError(f"devices={self.devices}: must be at least 1")
        if batch % self.devices:
            raise ConfigError(
                f"devices={self.devices}: must divide training.batch_size={batch}, of which each takes a part"
            )
        if micro is not None and batch // self.devices % micro:
            raise ConfigError(
                f"training.micro_batch_size={micro}: must divide what each of {self.devices} devices takes of a batch, "
                f"{batch // self.devices} messages"
            )
        if self.shard and self.devices == 1:
            raise ConfigError("shard=true: weights are split over several devices; set devices=2 or more")
        if self.shard and self.method.quantizes:
            raise ConfigError(
                f"shard=true with method={self.method.name}: 4-bit weights can't be split; "
                "leave it false, or take method=lora"
            )


def every_schema() -> Iterator[tuple[str, Any]]:
    """The schemas of all settings, each with what stands before their keys: the cell's own first."""
    several = {"method": METHOD_SCHEMAS.values(), "data": DATA_SCHEMAS.values()}
    yield "", Cell
    for part, kind in parts_of(Cell):
        yield from ((f"{part}.", schema) for schema in several.get(part, [kind]))


@cache
def every_setting() -> dict[str, Declared]:
    """What is declared of each setting that any schema has, by its dotted key."""
    return {
        f"{prefix}{name}": declared
        for prefix, schema in every_schema()
        for name, declared in declared_in(schema).items()
    }


@cache
def uncompared() -> frozenset[str]:
    """Settings that runs of one cell may differ in."""
    return frozenset(key for key, declared in every_setting().items() if not declared.compared)


@cache
def unrecorded() -> frozenset[str]:
    """Settings that runs don't record: they say something of one machine, or of one command."""
    return frozenset(key for key, declared in every_setting().items() if not declared.recorded)


def parse_bytes(text: str, key: str) -> int:
    """A size such as 24GiB, 24GB or 512MiB in bytes.

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT])(i?)B?", text, flags=re.IGNORECASE)
    if not found or float(found[1]) <= 0:
        raise ConfigError(f"{key}={text}: write a size as 24GiB, 24GB or 512MiB")
    step = 1024 if found[3] else 1000
    return int(float(found[1]) * step ** ("KMGT".index(found[2].upper()) + 1))
