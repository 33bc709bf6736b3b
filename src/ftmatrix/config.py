"""Where Hydra ends: a composed config becomes a typed, checked `Cell`."""

import dataclasses
import hashlib
import math
import os
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import ftmatrix.data
import ftmatrix.methods
from ftmatrix.data import DataSource
from ftmatrix.errors import ConfigError
from ftmatrix.framing import Framing
from ftmatrix.hardware import Device
from ftmatrix.methods import Method
from ftmatrix.models import Model
from ftmatrix.roles import Declared, command, declared_in, execution, parts_of, resolved, result
from ftmatrix.settings import Evaluating, Training

PACKAGE = Path(__file__).parent
DEFAULT_STORE = "sqlite:///mlflow.db"


REPORTS = Path("reports")
"""In the working directory: a folder a study."""


def config_folder() -> Path:
    """The folder of Hydra's YAML: beside the package in a wheel, at the top of a checkout."""
    packaged = PACKAGE / "conf"
    return packaged if packaged.is_dir() else PACKAGE.parents[1] / "conf"


def experiments_root() -> Path:
    """The folder that holds `experiments/`, packaged or in a checkout."""
    return config_folder().parent


def without_credentials(uri: str) -> str:
    """A URI as it may be shown and kept: without user and password.

    >>> without_credentials("https://me:secret@mlflow.example/a")
    'https://mlflow.example/a'
    """
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.netloc else uri


def settled_uri(uri: str) -> str:
    """A store's URI that means the same in every working directory."""
    if not uri.startswith("sqlite:///"):
        return uri
    return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"


def goal_of(uri: str, study: str) -> str:
    """The store and study that a record belongs to, in 8 hex digits."""
    place = without_credentials(settled_uri(uri)).rstrip("/")  # a new password is no other store
    return hashlib.sha256(f"{place}\n{study}".encode()).hexdigest()[:8]


@dataclass
class Tracking:
    """Where results go."""

    uri: str | None = execution(None)
    """MLflow's tracking URI (None: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db)."""
    sweep: str | None = execution(None)
    """Name of the sweep that this cell belongs to (None: made from the time)."""
    patience_minutes: float = execution(10.0)
    """How long a sweep that is over waits for a store that is away, before it leaves its results on disk."""

    @property
    def store(self) -> str:
        """The store to use: as configured, else MLFLOW_TRACKING_URI, else a SQLite file in the working directory."""
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            ConfigError: the patience is negative.
        """
        if not 0 <= self.patience_minutes < math.inf:
            raise ConfigError(f"tracking.patience_minutes={self.patience_minutes:g}: must be 0 or above")


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
    devices: int = result(1, added=True)
    """How many of them work on a cell together: each takes a part of every batch. On a CPU, so many processes."""
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


@cache
def every_setting() -> dict[str, Declared]:
    """What is declared of each setting that any schema has, by its dotted key."""
    schemas = {"method": ftmatrix.methods.SCHEMAS.values(), "data": ftmatrix.data.SCHEMAS.values()}
    found = declared_in(Cell)
    for part, kind in parts_of(Cell):
        for schema in schemas.get(part, [kind]):
            found |= {f"{part}.{name}": declared for name, declared in declared_in(schema).items()}
    return found


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


def register_schemas() -> None:
    """Tell Hydra the types of the config: the YAML files name them in their defaults."""
    store = ConfigStore.instance()
    store.store(name="cell", node=Cell)
    for name, method in ftmatrix.methods.SCHEMAS.items():
        store.store(group="schema/method", name=name, node=method)
    for name, source in ftmatrix.data.SCHEMAS.items():
        store.store(group="schema/data", name=name, node=source)
    store.store(group="schema/model", name="model", node=Model)


def cell_from(config: DictConfig) -> Cell:
    """The typed, checked cell of a composed config.

    Raises:
        ConfigError: a value is missing, of the wrong type or out of range.
    """
    config = without_hydra(config)
    try:
        cell = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error
    if not isinstance(cell, Cell):
        raise ConfigError("config.yaml must begin its defaults with `- cell`, the schema of an experiment")
    unknown = sorted(set(map(str, config)) - {entry.name for entry in dataclasses.fields(Cell)})
    if unknown:
        raise ConfigError(f"+{unknown[0]}: nothing reads such a setting; remove it")
    cell.check()
    return cell


def without_hydra(config: DictConfig) -> DictConfig:
    """A copy of a composed config that leaves out Hydra's own part."""
    config = config.copy()
    with open_dict(config):
        config.pop("hydra", None)
    return config
