"""`python -m ftmatrix.data.authoring`: the packaged intents' CSV files from their phrase families.

A family belongs to one split only. Openers, closers, typing errors and sloppy spelling are added by a seeded chance,
so that the files can be made again to the byte.
"""

import csv
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ftmatrix.data.dataset import Message, folded
from ftmatrix.data.pocket import PACKAGED

SEED = 77
HELD_OUT_MESSAGES = {"validation": 15, "test": 20}
"""Messages an intent gets in the splits that nothing is trained on."""

OPENERS = (
    "hi, ",
    "hello, ",
    "hello there, ",
    "hey ",
    "good morning, ",
    "please help: ",
    "sorry to bother you, ",
    "quick question: ",
)
CLOSERS = (" thanks", " thank you", " please help", " asap", " any idea?", " it's urgent", " cheers", " I'm confused")


@dataclass(frozen=True)
class Slots:
    """Fillers by the name of their slot."""

    fillers: dict[str, list[str]]

    def fill(self, text: str, chance: random.Random) -> str:
        """Replace every `{slot}` by one of its fillers."""
        return re.sub(r"\{(\w+)\}", lambda found: chance.choice(self.fillers[found[1]]), text)


def expansions(family: str) -> Iterator[str]:
    """Every reading of a family: one for each combination of its `[a|b]` choices."""
    parts = re.split(r"\[([^\]]*)\]", family)
    choices = [part.split("|") if index % 2 else [part] for index, part in enumerate(parts)]
    for combination in itertools.product(*choices):
        yield re.sub(r"\s+([,.?!])", r"\1", re.sub(r"\s+", " ", "".join(combination))).strip()


def messages(families: list[str], count: int, slots: Slots, chance: random.Random, taken: set[str]) -> list[str]:
    """`count` new messages, spread over the families as evenly as they allow; `taken` holds the folded ones so far.

    Raises:
        ValueError: the families can't make that many different ones.
    """
    readings = [list(expansions(family)) for family in families]
    for reading in readings:
        chance.shuffle(reading)
    made: list[str] = []
    for turn in range(count * 40):
        if len(made) == count:
            return made
        reading = readings[turn % len(readings)]
        text = roughened(slots.fill(reading[(turn // len(readings)) % len(reading)], chance), chance)
        if folded(text) not in taken:
            taken.add(folded(text))
            made.append(text)
    raise ValueError(f"{len(made)} different messages of {count} from: {families[0]!r} …; add choices")


def roughened(text: str, chance: random.Random) -> str:
    """A text as people type it: with a greeting, a plea, sloppy case and punctuation, or a slip of the finger."""
    if chance.random() < 0.12:
        text = chance.choice(OPENERS) + text
    if chance.random() < 0.12:
        text = text + chance.choice(CLOSERS)
    if chance.random() < 0.6:
        text = text[0].upper() + text[1:]
        if text[-1] not in "?.!":
            asks = re.match(
                r"(?:\w+, )?(how|what|when|where|why|who|which|is|are|do|does|can|could|will|did)\b", text.lower()
            )
            text += "?" if asks else "."
    elif chance.random() < 0.4:
        text = text.lower()
    if chance.random() < 0.15:
        text = _slip(text, chance)
    return text


def _slip(text: str, chance: random.Random) -> str:
    """One letter of a long word swapped with the next, left out, or doubled."""
    places = [found.start() + 1 for found in re.finditer(r"[a-z]{5,}", text)]
    if not places:
        return text
    at = chance.choice(places)
    match chance.choice(("swap", "drop", "double")):
        case "swap":
            return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
        case "drop":
            return text[:at] + text[at + 1 :]
        case _:
            return text[: at + 1] + text[at:]


def build(phrases: dict[str, Any]) -> dict[str, list[Message]]:
    """The three splits, each shuffled; no message stands in two of them."""
    slots = Slots(phrases["slots"])
    splits: dict[str, list[Message]] = {"train": [], "validation": [], "test": []}
    taken: set[str] = set()
    for intent, families in phrases["intents"].items():
        counts = {"train": families["count"], **HELD_OUT_MESSAGES}
        for split, made in splits.items():
            chance = random.Random(f"{SEED}:{intent}:{split}")
            texts = messages(families[split], counts[split], slots, chance, taken)
            made += [Message(text, intent) for text in texts]
    for split, made in splits.items():
        random.Random(f"{SEED}:{split}").shuffle(made)
    return splits


def main() -> None:
    """Write train.csv, validation.csv and test.csv beside the phrase families."""
    splits = build(yaml.safe_load((PACKAGED / "phrases.yaml").read_text()))
    for split, made in splits.items():
        with Path(PACKAGED / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "category"))
            writer.writerows((message.text, message.label) for message in made)


if __name__ == "__main__":
    main()
