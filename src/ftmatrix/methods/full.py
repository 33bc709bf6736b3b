"""Full fine-tuning: every weight is trained."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftmatrix.hardware import Precision, dtype_of
from ftmatrix.methods.base import Method

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass
class FullFineTuning(Method):
    """Train all weights of the base model."""

    def weights_dtype(self, precision: Precision) -> "torch.dtype":
        return dtype_of(precision, trained=True)

    def adapt(self, model: "PreTrainedModel", precision: Precision) -> "torch.nn.Module":
        return model.requires_grad_(True)
