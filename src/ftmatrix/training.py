"""The training loop: a generator of optimizer steps that knows nothing of methods, Hydra or MLflow."""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ftmatrix.batches import Batch, Collator, label_logits
from ftmatrix.framing import Example
from ftmatrix.hardware import Accelerator, Device, Precision
from ftmatrix.records import MemoryParts, Step
from ftmatrix.settings import Training


class Trainer:
    """A model with its optimizer and order of data. `steps()` trains, one optimizer step at a time."""

    def __init__(
        self,
        model: nn.Module,
        examples: Sequence[Example],
        *,
        settings: Training,
        lr: float,
        seed: int,
        collator: Collator,
        accelerator: Accelerator,
        precision: Precision,
    ) -> None:
        self.model, self.examples, self.settings = model, examples, settings
        self.lr, self.seed, self.collator = lr, seed, collator
        self.accelerator = accelerator
        self.autocast = autocast(accelerator, precision)
        self.total_steps = settings.steps(len(examples))
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.memory: MemoryParts | None = None
        """What the first step left in memory."""
        self.optimizer = make_optimizer(self.trained, lr=lr, weight_decay=settings.weight_decay)

    def steps(self, start: int = 0) -> Iterator[Step]:
        """Train from step `start` to the end, or to the first step whose loss or gradient isn't finite.

        Such a step is yielded without being applied, and is the last.
        """
        self.model.train()
        if self.settings.gradient_checkpointing:
            recompute_activations(self.model)
        index = 0
        for epoch in range(self.settings.epochs):
            for rows in epoch_order(len(self.examples), self.seed, epoch).split(self.settings.batch_size):
                if index >= start:
                    step = self._step(index, [self.examples[row] for row in rows.tolist()])
                    yield step
                    if not step.is_finite:
                        return
                index += 1

    def state(self) -> dict[str, Any]:
        """Trained weights, optimizer and random state: all that the next step depends on, beside its number."""
        random = {"cpu": torch.get_rng_state()}
        if self.accelerator.device is not Device.cpu:
            random[self.accelerator.kind] = getattr(torch, self.accelerator.kind).get_rng_state()
        weights = [weight.detach() for weight in self.trained]
        return {"weights": weights, "optimizer": self.optimizer.state_dict(), "random": random}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        for weight, saved in zip(self.trained, state["weights"], strict=True):
            weight.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        for kind, random in state["random"].items():
            torch.set_rng_state(random) if kind == "cpu" else getattr(torch, kind).set_rng_state(random)

    def _step(self, index: int, examples: Sequence[Example]) -> Step:
        started = time.perf_counter()
        lr = self.settings.lr_at(index, self.total_steps, self.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        label_tokens = sum(len(example.label) for example in examples)
        micro = self.settings.micro_batch_size or len(examples)
        losses = []
        for start in range(0, len(examples), micro):
            batch = self.collator(examples[start : start + micro]).to(self.accelerator.kind)
            loss = self._loss(batch) / label_tokens
            loss.backward()
            losses.append(loss.detach())
        norm = nn.utils.clip_grad_norm_(self.trained, self.settings.max_grad_norm or math.inf)
        loss_value, norm_value = torch.stack([torch.stack(losses).sum(), norm.to(losses[0])]).tolist()
        if math.isfinite(loss_value) and math.isfinite(norm_value):
            self.optimizer.step()
            self.memory = self.memory or self._memory()
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.synchronize()
        return Step(
            index=index,
            lr=lr,
            loss=loss_value,
            grad_norm=norm_value,
            tokens=sum(len(example) for example in examples),
            label_tokens=label_tokens,
            seconds=time.perf_counter() - started,
        )

    def _loss(self, batch: Batch) -> torch.Tensor:
        """Summed negative log-likelihood of the label tokens. The logits themselves don't outlive it."""
        with self.autocast:
            logits, targets = label_logits(self.model, batch)
        return functional.cross_entropy(logits, targets, reduction="sum")

    def _memory(self) -> MemoryParts:
        """Bytes held between the optimizer's step and the end of the gradients."""
        return MemoryParts(
            weight_bytes=sum(weight.nbytes for weight in self.model.parameters()),
            gradient_bytes=sum(weight.grad.nbytes for weight in self.trained if weight.grad is not None),
            optimizer_bytes=sum(state.nbytes for state in optimizer_tensors(self.optimizer)),
        )


def epoch_order(examples: int, seed: int, epoch: int) -> torch.Tensor:
    """The epoch's permutation of the examples: a function of seed and epoch alone, so the same for every method."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(examples, generator=generator)


def make_optimizer(trained: Sequence[nn.Parameter], *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW, fused; only matrices decay."""
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    others = [parameter for parameter in trained if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The tensors of an optimizer's state."""
    states = (value for state in optimizer.state.values() for value in state.values())
    return [value for value in states if isinstance(value, torch.Tensor)]


def recompute_activations(model: Any) -> None:
    """Turn gradient checkpointing on, by the name that this version of transformers has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def autocast(accelerator: Accelerator, precision: Precision) -> torch.autocast:
    """The arithmetic of a precision: bfloat16 autocast for mixed, none otherwise."""
    return torch.autocast(accelerator.kind, torch.bfloat16, enabled=precision is Precision.mixed)


def weights_are_finite(model: nn.Module) -> bool:
    """Whether every trained weight is a finite number."""
    return all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.requires_grad)
