"""What a reader of a cell's figures has to know."""

from collections.abc import Iterator

from ftmatrix.lm import Evaluator
from ftmatrix.models import quantized_by
from ftmatrix.spec import ReadyCell


def notes_of(ready: ReadyCell, evaluator: Evaluator, *, resumed: int, varies: str | None) -> Iterator[str]:
    """A line for everything that limits what the figures say.

    `resumed` counts the steps of earlier processes, `varies` names an operation that gives other sums each time.
    """
    framer = evaluator.framer
    yield from ready.dataset.notes
    if file := ready.checkpoint.quantized_file:
        yield f"weights come from a quantised file, {file}: what quantisation cost the model is lost"
    if by := quantized_by(ready.checkpoint.folder):
        yield f"the checkpoint was quantised before ({by}): its own settings count, not the method's"
    if resumed:
        yield f"resumed after {resumed} steps: times and peaks are those of several processes"
    if framer.max_length < framer.framing.max_length:
        yield f"framing.max_length={framer.framing.max_length} is bounded by the model's {framer.max_length} positions"
    if framer.cut:
        yield f"{len(framer.cut)} message(s) cut to {framer.max_length} tokens (framing.max_length)"
    if ready.shares_card:
        yield "other cells ran on the same card: times aren't comparable"
    if varies:
        yield f"the same seed may give another result: {varies} isn't deterministic on {ready.accelerator.kind}"
    if evaluator.compute.collator.row_tokens is None:
        yield "batches are padded: this model doesn't keep messages apart that share a row"
