"""Full fine-tuning: every weight is trained."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftmatrix.arms.base import Method
from ftmatrix.machine import Precision

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass
class FullFineTuning(Method):
    """Train all weights of the base model."""

    def weights_dtype(self, precision: Precision) -> "torch.dtype":
        import torch

        return torch.bfloat16 if precision is Precision.bf16 else torch.float32

    def adapt(self, model: "PreTrainedModel", precision: Precision) -> "torch.nn.Module":
        return model.requires_grad_(True)
