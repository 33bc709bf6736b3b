"""What a fine-tuning method has to answer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omegaconf import MISSING

from ftmatrix.machine import Accelerator, Precision
from ftmatrix.roles import resolved

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel


@dataclass
class Method:
    """A way to adapt a pretrained causal LM. Subclasses override what differs from "load in the trained dtype"."""

    trains_adapters: ClassVar[bool] = False
    """Whether it trains adapters on a frozen base, by PEFT."""

    name: str = resolved(MISSING, compared=False)
    """What tables and run names call it."""

    def check(self) -> None:
        """Refuse bad settings.

        Raises:
            ConfigError: a value is out of range.
        """

    def unsupported_on(self, accelerator: Accelerator) -> str | None:
        """Why the method can't run on a device; None where it can."""
        return None

    @property
    def quantizes(self) -> bool:
        """Whether it stores the base model's weights in fewer bits than any arithmetic has."""
        return False

    def weights_dtype(self, precision: Precision) -> "torch.dtype | str":
        """The dtype to load the base model's weights in; "auto" is the one that they are stored in."""
        raise NotImplementedError

    def quantization(self, precision: Precision) -> "BitsAndBytesConfig | None":
        """How to quantise the base model while it loads; None leaves it as it is."""
        return None

    def adapt(self, model: "PreTrainedModel", precision: Precision) -> "torch.nn.Module":
        """The model to train, with `requires_grad` set on exactly what the method trains."""
        raise NotImplementedError
