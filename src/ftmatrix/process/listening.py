"""Who hears of cells while they run: what draws, and whoever else wants to know, or to stop one."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from ftmatrix.errors import first_line
from ftmatrix.records import CellResult, Phase, Step
from ftmatrix.spec import ReadyCell

Said = TypeVar("Said")


class Listener:
    """Hears of a campaign's cells in the order in which things happen. What isn't of interest is left as it is."""

    def began(self, ready: ReadyCell) -> None:
        """A cell's process was started."""

    def entered(self, ready: ReadyCell, phase: Phase) -> None:
        """A cell entered a phase."""

    def stepped(self, ready: ReadyCell, steps: tuple[Step, ...]) -> str | None:
        """Optimizer steps were done since the last call. A text ends the cell, for that reason.

        The cell saves its progress, and the same command goes on with it.
        """
        return None

    def ended(self, ready: ReadyCell, result: CellResult) -> None:
        """A cell has its result."""

    def taken(self, ready: ReadyCell) -> None:
        """Another sweep has finished the cell."""

    def waits(self, ready: ReadyCell) -> None:
        """Another sweep runs the cell."""


class Listeners(Listener):
    """Several as one. One that fails isn't asked again, and costs no cell: `tell` hears of it."""

    def __init__(self, members: Sequence[Listener], tell: Callable[[str], None]) -> None:
        self.members, self.tell = list(members), tell

    def began(self, ready: ReadyCell) -> None:
        self._each(lambda member: member.began(ready))

    def entered(self, ready: ReadyCell, phase: Phase) -> None:
        self._each(lambda member: member.entered(ready, phase))

    def stepped(self, ready: ReadyCell, steps: tuple[Step, ...]) -> str | None:
        return next(filter(None, self._each(lambda member: member.stepped(ready, steps))), None)

    def ended(self, ready: ReadyCell, result: CellResult) -> None:
        self._each(lambda member: member.ended(ready, result))

    def taken(self, ready: ReadyCell) -> None:
        self._each(lambda member: member.taken(ready))

    def waits(self, ready: ReadyCell) -> None:
        self._each(lambda member: member.waits(ready))

    def _each(self, hear: Callable[[Listener], Said]) -> list[Said]:
        said = []
        for member in list(self.members):
            try:
                said.append(hear(member))
            except Exception as error:
                self.members.remove(member)
                self.tell(f"{type(member).__name__} hears no more: {type(error).__name__}: {first_line(error)}")
        return said
