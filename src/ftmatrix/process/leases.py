"""Which of this machine's GPUs each running cell has: a cell's own, as long as there are as many as cells."""

from collections.abc import Callable, Sequence

from ftmatrix.machine import Card, Device, is_there
from ftmatrix.spec import ReadyCell

Key = tuple[Device, str]


class Leases:
    """Lends cards to cells, at most `jobs` at once. A cell on a CPU needs none.

    `look` tells whether a card is still there.
    """

    def __init__(self, cells: Sequence[ReadyCell], jobs: int, look: Callable[[Device, str], bool] = is_there) -> None:
        self._look = look
        self._free: dict[Key, int] = {}
        self._cells: dict[Key, int] = {}
        for cell in cells:
            for card in cell.accelerator.cards:
                self._free[cell.accelerator.device, card.name] = card.free_bytes
                self._cells[cell.accelerator.device, card.name] = 0
        self._most = most_on_a_card(cells, jobs)

    def has_room(self, cell: ReadyCell) -> bool:
        """Whether `take` wouldn't have to wait for another cell's end."""
        if not cell.accelerator.cards or len(self._left(cell)) < cell.cell.devices:
            return True
        return len(self._open_to(cell)) >= cell.cell.devices

    def take(self, cell: ReadyCell) -> tuple[Card, ...]:
        """Cards for a cell that there is room for: those with the fewest cells, and of these with most free memory.

        Raises:
            NoCardError: so many aren't left.
        """
        if not cell.accelerator.cards:
            return ()
        if (left := len(self._left(cell))) < (needed := cell.cell.devices):
            raise NoCardError(f"it needs {needed} of device={cell.accelerator.kind}, {left} are left")
        by_load = sorted(self._open_to(cell), key=lambda key: (self._cells[key], -self._free[key]))
        for key in by_load[:needed]:
            self._cells[key] += 1
        return tuple(Card(name, self._free[device, name]) for device, name in by_load[:needed])

    def _left(self, cell: ReadyCell) -> list[Key]:
        return [key for key in self._cells if key[0] is cell.accelerator.device]

    def _open_to(self, cell: ReadyCell) -> list[Key]:
        return [key for key in self._left(cell) if self._cells[key] < self._most]

    def give_back(self, cell: ReadyCell, cards: Sequence[Card]) -> None:
        """End a lease."""
        for card in cards:
            if (key := (cell.accelerator.device, card.name)) in self._cells:
                self._cells[key] -= 1

    def lost(self, cell: ReadyCell, cards: Sequence[Card]) -> list[str]:
        """Of the cards of a cell that crashed those that are gone: none gets them any more."""
        device = cell.accelerator.device
        gone = [card.name for card in cards if not self._look(device, card.name)]
        for name in gone:
            self._cells.pop((device, name), None)
        return gone


class NoCardError(Exception):
    """No card is left that a cell could get."""


def most_on_a_card(cells: Sequence[ReadyCell], jobs: int) -> int:
    """Cells that share a card where so many run at once: one, unless more are asked for than there are cards."""
    shares = (-(-jobs * cell.cell.devices // len(cards)) for cell in cells if (cards := cell.accelerator.cards))
    return max(shares, default=1)
