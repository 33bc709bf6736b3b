"""How a cell ends, how stable it was, and what it is doing."""

from enum import StrEnum


class Outcome(StrEnum):
    """How a cell ended. Only `COMPLETED` has a result; every other outcome carries its reason."""

    COMPLETED = "completed"
    OUT_OF_MEMORY = "out of memory"
    WONT_FIT = "won't fit"
    UNSUPPORTED = "unsupported"
    GATED = "gated model"
    MISSING_MODEL = "missing model"
    BAD_DATA = "bad data"
    CRASHED = "crashed"
    INTERRUPTED = "interrupted"


class Verdict(StrEnum):
    """Stability of a completed run, from best to worst."""

    STABLE = "stable"
    UNDECIDED = "undecided"
    """Too few validation messages to say whether anything was learned."""
    NOT_LEARNED = "not_learned"
    """No better than the most frequent intent, and no sign of damage: too low a rate or too few steps."""
    SPIKY = "spiky"
    COLLAPSED = "collapsed"
    DIVERGED = "diverged"

    @property
    def is_unstable(self) -> bool:
        """Whether something broke. Too little isn't broken."""
        return self in (Verdict.SPIKY, Verdict.COLLAPSED, Verdict.DIVERGED)


class Phase(StrEnum):
    """What a running cell is doing."""

    LOAD = "load"
    TRAIN = "train"
    EVALUATE = "evaluate"

    @property
    def doing(self) -> str:
        """The phase as it stands behind "while"."""
        return {Phase.LOAD: "loading", Phase.TRAIN: "training", Phase.EVALUATE: "evaluating"}[self]
