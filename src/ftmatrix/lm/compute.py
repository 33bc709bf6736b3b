"""What a model is trained and asked with, whatever the method."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ftmatrix.lm.batches import Batch, Collator
from ftmatrix.lm.distributed import Group
from ftmatrix.lm.framing import Example
from ftmatrix.machine import Accelerator, Precision, autocast

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Compute:
    """How batches are laid out, and on what, in which precision and by which processes they are computed."""

    collator: Collator
    accelerator: Accelerator
    precision: Precision
    group: Group = field(default_factory=Group)

    @classmethod
    def suiting(
        cls, model: "nn.Module", pad_id: int, accelerator: Accelerator, precision: Precision, group: Group | None = None
    ) -> "Compute":
        """Batches laid out as the model takes them in this precision: messages share rows where it keeps them apart."""
        with autocast(accelerator, precision):
            collator = Collator.suiting(model, pad_id)
        return cls(collator, accelerator, precision, group or Group())

    @property
    def autocast(self) -> "torch.autocast":
        """The arithmetic of the precision."""
        return autocast(self.accelerator, self.precision)

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Examples as a batch on the device."""
        return self.collator(examples).to(self.accelerator.kind)
