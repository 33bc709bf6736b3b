"""Settings that are the same for every method of a comparison."""

import math
from dataclasses import dataclass
from enum import Enum

from ftmatrix.errors import ConfigError
from ftmatrix.machine import Precision
from ftmatrix.roles import resolved, result


class Schedule(Enum):
    """Shape of the learning rate after warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


@dataclass
class Training:
    """Everything about a run that is the same for all methods of a comparison."""

    epochs: int = result(3)
    """Passes over the training messages."""
    batch_size: int = result(16)
    """Messages an optimizer step averages over."""
    micro_batch_size: int | None = result(None)
    """Messages a forward pass takes at once (None: the whole batch, or a device's share of it). The sum of their
    gradients is the batch's."""
    schedule: Schedule = result(Schedule.linear)
    """How the rate goes on after warm-up: it stays, or falls to 0 in a line or a half cosine."""
    warmup_fraction: float = result(0.05)
    """Share of the steps over which the rate rises from 0."""
    weight_decay: float = result(0.0)
    """AdamW's decay of matrices, times the rate; vectors don't decay."""
    max_grad_norm: float | None = result(1.0)
    """Gradients are clipped to this global L2 norm (None: never)."""
    precision: Precision = resolved(Precision.auto)
    """What weights and arithmetic are kept in; auto: mixed on a GPU with bfloat16 units, else fp32."""
    gradient_checkpointing: bool = result(False)
    """Recompute activations in the backward pass: less memory, more time."""

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            ConfigError: names the value, the rule and the way out.
        """
        for key in ("epochs", "batch_size", "micro_batch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"training.{key}={value}: must be at least 1")
        micro = self.micro_batch_size
        if micro is not None and self.batch_size % micro:
            raise ConfigError(f"training.micro_batch_size={micro}: must divide training.batch_size={self.batch_size}")
        if not 0 <= self.warmup_fraction < 1:
            raise ConfigError(f"training.warmup_fraction={self.warmup_fraction:g}: must lie in [0, 1)")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"training.weight_decay={self.weight_decay:g}: must be 0 or above")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ConfigError(
                f"training.max_grad_norm={self.max_grad_norm:g}: must be above 0, or null for no clipping"
            )

    def at_once(self, devices: int = 1) -> int:
        """Messages a forward pass takes, on each of so many devices."""
        return min(self.micro_batch_size or self.batch_size, self.batch_size // devices)

    def steps(self, messages: int) -> int:
        """Optimizer steps over a training split of so many messages."""
        return self.epochs * math.ceil(messages / self.batch_size)

    def warmup_steps(self, steps: int) -> int:
        """Steps of the rising rate."""
        return round(self.warmup_fraction * steps)

    def lr_at(self, step: int, steps: int, peak: float) -> float:
        """The rate of one step, counted from 0."""
        warmup = self.warmup_steps(steps)
        if step < warmup:
            return peak * (step + 1) / warmup
        left = (steps - step) / max(1, steps - warmup)  # 1 after warm-up, above 0 at the last step
        match self.schedule:
            case Schedule.constant:
                return peak
            case Schedule.linear:
                return peak * left
            case Schedule.cosine:
                return peak * 0.5 * (1 - math.cos(math.pi * left))


@dataclass
class Evaluating:
    """How evaluation batches its work; decides memory and time, never a score."""

    batch_size: int = result(64, compared=False)
    """Messages that are scored, or answered, at once: decides memory and time, never a score."""
    forgetting: bool = result(True)
    """Measure perplexity on general text before and after training."""

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            ConfigError: the batch is empty.
        """
        if self.batch_size < 1:
            raise ConfigError(f"evaluation.batch_size={self.batch_size}: must be at least 1")


@dataclass
class Framing:
    """How a message becomes a prompt and a label becomes text."""

    template: str = result("{text}\nIntent:")
    """The prompt; `{text}` stands for the message."""
    spaces_for_underscores: bool = result(True)
    """Write card_arrival as "card arrival", which tokenises into words."""
    max_length: int = result(128)
    """Longest sequence in tokens, label included; longer messages are cut at their end, and counted."""
    end: str | None = result(None, added=True)
    r"""What ends an answer, such as \n, a line break: one token (None: the model's own end token)."""

    def check(self) -> None:
        """Refuse bad settings.

        Raises:
            ConfigError: the template has no place for the message, or the length is too small.
        """
        if self.template.count("{text}") != 1:
            raise ConfigError(f"framing.template={self.template!r}: must hold {{text}} exactly once")
        if self.end == "":
            raise ConfigError('framing.end is empty: name a text of one token, such as "\\n", or null')
        if self.max_length < 16:
            raise ConfigError(f"framing.max_length={self.max_length}: must be at least 16 tokens")

    def label_text(self, label: str) -> str:
        """What the model is to write for a label."""
        return label.replace("_", " ") if self.spaces_for_underscores else label
