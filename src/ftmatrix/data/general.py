"""General English, written for this project, so that what training makes a model forget can be measured offline."""

from pathlib import Path

PACKAGED = Path(__file__).parent.parent / "pocket" / "general.txt"


def general_text() -> str:
    """About 30 KB of plain prose; no model has been trained on it."""
    return PACKAGED.read_text(encoding="utf-8")
