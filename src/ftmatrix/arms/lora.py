"""LoRA and its variants: low-rank adapters on all linear layers, over a plain or a quantised base."""

import importlib.util
import logging
import math
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ftmatrix.arms.base import Method
from ftmatrix.errors import ConfigError, UnsupportedError, first_line
from ftmatrix.machine import Accelerator, Device, Precision
from ftmatrix.roles import result

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of optional kernels that cells don't need


class Quantization(Enum):
    """How the frozen base is stored. nf4: 4-bit NormalFloat with double quantisation (bitsandbytes)."""

    none = "none"
    nf4 = "nf4"


@dataclass
class Lora(Method):
    """Train low-rank adapters on every linear layer but the output layer; the base stays frozen.

    References:
        Hu et al. 2021, arXiv:2106.09685 (LoRA); Dettmers et al. 2023, arXiv:2305.14314 (QLoRA);
        Liu et al. 2024, arXiv:2402.09353 (DoRA); Kalajdzievski 2023, arXiv:2312.03732 (rank-stabilised LoRA).
    """

    r: int = result(16)
    """Rank of the adapters."""
    alpha: float = result(32.0)
    """Adapters are scaled by alpha / r (alpha / sqrt(r) with `rslora`). Fix it across a study: it rescales the rate."""
    dropout: float = result(0.0)
    """Share of an adapter's inputs that is left out in training."""
    dora: bool = result(False)
    """Weight-decomposed adapters (DoRA)."""
    rslora: bool = result(False)
    """Rank-stabilised scaling (rsLoRA)."""
    quantize: Quantization = result(Quantization.none)
    """How the frozen base is stored; nf4 is QLoRA's 4 bits."""

    trains_adapters: ClassVar[bool] = True

    def check(self) -> None:
        if self.r < 1:
            raise ConfigError(f"method.r={self.r}: the rank must be at least 1")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(
                f"method.alpha={self.alpha:g}: must be a number above 0, such as {2 * self.r} (alpha / r scales)"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"method.dropout={self.dropout:g}: must lie in [0, 1)")

    def unsupported_on(self, accelerator: Accelerator) -> str | None:
        if not self.quantizes:
            return None
        if importlib.util.find_spec("bitsandbytes") is None:
            return "4-bit weights need bitsandbytes, which isn't installed (pip install bitsandbytes)"
        if accelerator.device is Device.mps:
            import torch

            if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 9):
                return f"4-bit weights on Apple MPS need torch 2.9 or newer; this is {torch.__version__}"
        return None

    @property
    def quantizes(self) -> bool:
        return self.quantize is not Quantization.none

    def weights_dtype(self, precision: Precision) -> "torch.dtype | str":
        import torch

        return {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}.get(precision, "auto")

    def quantization(self, precision: Precision) -> "BitsAndBytesConfig | None":
        if not self.quantizes:
            return None
        import torch
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32 if precision is Precision.fp32 else torch.bfloat16,
        )

    def adapt(self, model: "PreTrainedModel", precision: Precision) -> "torch.nn.Module":
        from peft import LoraConfig, TaskType, get_peft_model

        self._prepare_base(model, precision)
        config = LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules="all-linear",
            use_dora=self.dora,
            use_rslora=self.rslora,
        )
        # PEFT freezes the base; its own upcast of half-precision adapters is what "mixed" means, and not what bf16 does
        try:
            return get_peft_model(model, config, autocast_adapter_dtype=precision is not Precision.bf16)
        except ValueError as error:
            raise UnsupportedError(
                f"method={self.name}: PEFT has no adapters for this model ({first_line(error)})"
            ) from error

    def restore(self, model: "PreTrainedModel", adapter: Path, precision: Precision) -> "torch.nn.Module":
        """A base model with an adapter that was trained on it and saved."""
        from peft import PeftModel

        self._prepare_base(model, precision)
        return PeftModel.from_pretrained(model, str(adapter))

    def _prepare_base(self, model: "PreTrainedModel", precision: Precision) -> None:
        """Have the base compute as it does in training."""
        if self.quantize is Quantization.nf4:
            _keep_arithmetic(model)
        if precision is Precision.mixed:
            _halve_linear_weights(model)


def _halve_linear_weights(model: "PreTrainedModel") -> None:
    """Store frozen linear weights in bfloat16 and the rest in float32: what autocast computes of float32 weights
    anyway, so that a frozen base computes exactly what a trained one does, in half the memory.
    """
    import torch

    output = model.get_output_embeddings()
    for module in model.modules():
        linear = isinstance(module, torch.nn.Linear) and module is not output
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(torch.bfloat16 if linear else torch.float32)


def _keep_arithmetic(model: "PreTrainedModel") -> None:
    """Have evaluation compute as training does: with dequantised weights, not by bitsandbytes' kernels for inference.

    They round otherwise; the CPU's also repacks the weights for good, computes in bfloat16 whatever the precision, and
    refuses widths that aren't multiples of its block.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
            module.forward = partial(_dequantised, module)  # type: ignore[method-assign]


def _dequantised(layer: Any, inputs: "torch.Tensor") -> "torch.Tensor":
    """A 4-bit layer's output (…, out) of inputs (…, in)."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import fix_4bit_weight_quant_state_from_module

    if torch.is_grad_enabled():  # its own way, which keeps no dequantised weight for the backward pass
        learned: torch.Tensor = type(layer).forward(layer, inputs)
        return learned
    fix_4bit_weight_quant_state_from_module(layer)
    computed = layer.compute_dtype or inputs.dtype
    weight = dequantize_4bit(layer.weight.view(-1, 1), layer.weight.quant_state).to(computed)
    bias = None if layer.bias is None else layer.bias.to(computed)
    return torch.nn.functional.linear(inputs.to(computed), weight, bias).to(inputs.dtype)
