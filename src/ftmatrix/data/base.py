"""What every data source has in common: read, check, subset, cut validation."""

from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import MISSING

from ftmatrix.data.dataset import (
    Dataset,
    Messages,
    check_messages,
    check_splits,
    cut_validation,
    describe,
    stratified_subset,
)
from ftmatrix.errors import ConfigError, DataError
from ftmatrix.roles import resolved, result


@dataclass(frozen=True)
class RawSplits:
    """What a source holds, before checks; `validation` is None where it has none of its own."""

    source: str
    train: Messages
    test: Messages
    validation: Messages | None = None


@dataclass
class DataSource:
    """A labelled data set. Subclasses read it; everything after that is the same for all."""

    name: str = resolved(MISSING, compared=False)
    """What tables and run names call it."""
    path: str | None = resolved(None, recorded=False)
    """Folder on this machine that holds the data set."""
    limit: int | None = resolved(None)
    """Train on a stratified, seeded subset of this many messages (None: all)."""
    test_limit: int | None = resolved(None)
    """Test on a stratified, seeded subset of this many messages (None: all)."""
    validation_fraction: float = resolved(0.1)
    """Share of train that becomes validation where the source has none."""
    split_seed: int = resolved(0)
    """Seed of subsets and the validation cut. Not the cell's seed: all seeds of a study share one split."""
    common_intents: int = result(20)
    """How many of the most frequent intents `accuracy_common` counts."""
    confusion_pair: list[str] = result(default_factory=list)
    """Two intents whose mutual confusion is measured by name (empty: none)."""

    @property
    def title(self) -> str:
        """The name, with the folder's own where there is one."""
        return f"{self.name} ({Path(self.path).expanduser().resolve().name})" if self.path else self.name

    def check(self) -> None:
        """Refuse bad settings.

        Raises:
            ConfigError: a value is out of range.
        """
        for key in ("limit", "test_limit"):
            value = getattr(self, key)
            if value is not None and value < 2:
                raise ConfigError(f"data.{key}={value}: must be at least 2, or null for all messages")
        if not 0 < self.validation_fraction <= 0.5:
            raise ConfigError(f"data.validation_fraction={self.validation_fraction:g}: must lie in (0, 0.5]")
        if self.common_intents < 1:
            raise ConfigError(f"data.common_intents={self.common_intents}: must be at least 1")
        if len(self.confusion_pair) not in (0, 2) or len(set(self.confusion_pair)) != len(self.confusion_pair):
            raise ConfigError(f"data.confusion_pair={self.confusion_pair}: name two different intents, or none")

    def read(self, *, fetch: bool = True) -> RawSplits:
        """The messages as the source holds them. `fetch=False` takes a hub's data from the cache only.

        Raises:
            DataError: they are missing or malformed.
            NotFetchedError: a download would be needed, and `fetch` forbids it.
        """
        raise NotImplementedError

    def load(self, *, fetch: bool = True) -> Dataset:
        """The checked data set, subset and split by `split_seed`. `fetch=False` takes a hub's from the cache only.

        Raises:
            DataError: the data can't be used; the message says where and why.
            NotFetchedError: a download would be needed, and `fetch` forbids it.
        """
        raw = self.read(fetch=fetch)
        for split, messages in (("train", raw.train), ("test", raw.test), ("validation", raw.validation or ())):
            check_messages(messages, f"{raw.source}, {split}")
        intents = len({message.label for message in raw.train})
        if self.limit is not None and self.limit < 2 * intents:
            raise DataError(f"data.limit={self.limit}: {raw.source} has {intents} intents; take at least {2 * intents}")
        train = stratified_subset(raw.train, self.limit or len(raw.train), seed=self.split_seed)
        test = stratified_subset(raw.test, self.test_limit or len(raw.test), seed=self.split_seed)
        if raw.validation is None:
            train, validation = cut_validation(train, self.validation_fraction, seed=self.split_seed)
        else:
            validation = raw.validation
        dataset = Dataset(raw.source, train, validation, test)
        check_splits(dataset)
        unknown = set(self.confusion_pair) - set(dataset.labels)
        if unknown:
            raise DataError(
                f"{raw.source}: data.confusion_pair names {sorted(unknown)[0]!r}, which is no intent of train"
            )
        return replace(dataset, notes=describe(dataset))

    def folder(self) -> Path:
        """The folder that `path` names.

        Raises:
            DataError: there is none.
        """
        if self.path is None:
            raise DataError(f"data={self.name} needs data.path=DIR, the folder that holds its files")
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            raise DataError(f"data.path={self.path}: no such folder")
        return folder
