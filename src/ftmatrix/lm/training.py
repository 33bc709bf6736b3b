"""The training loop: a generator of optimizer steps that knows nothing of methods, Hydra or MLflow."""

import math
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ftmatrix.lm.batches import Batch, label_logits
from ftmatrix.lm.compute import Compute
from ftmatrix.lm.distributed import local, sharded_as, whole
from ftmatrix.lm.framing import Example
from ftmatrix.lm.settings import Training
from ftmatrix.machine import Device
from ftmatrix.records import MemoryParts, Step


class Trainer:
    """A model with its optimizer and order of data. `steps()` trains, one optimizer step at a time."""

    def __init__(
        self,
        model: nn.Module,
        examples: Sequence[Example],
        compute: Compute,
        *,
        settings: Training,
        lr: float,
        seed: int,
    ) -> None:
        self.model, self.examples, self.compute, self.settings = model, examples, compute, settings
        self.lr, self.seed, self.group = lr, seed, compute.group
        self._at_once = settings.at_once(self.group.rank.size)
        self.total_steps = settings.steps(len(examples))
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.memory: MemoryParts | None = None
        """What the first step left in memory."""
        self.optimizer = make_optimizer(self.trained, lr=lr, weight_decay=settings.weight_decay)
        if settings.gradient_checkpointing:
            recompute_activations(model)

    @cached_property
    def forward(self) -> nn.Module:
        """What to call in the model's place. Copies of a model keep room for their gradients as long as it is there."""
        return self.group.training(self.model)

    def rehearse(self) -> None:
        """Go through the largest passes to come, and change nothing: if memory suffices now, it does to the end.

        The optimizer has its state meanwhile, of zeros, as it has from the first step on.
        """
        random = self._random()
        self.model.train()
        optimizer = make_optimizer(self.trained, lr=0.0, weight_decay=0.0)
        for weight in self.trained:
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        accumulates = self._at_once * self.group.rank.size < self.settings.batch_size
        passes = [few for examples in self._batches() for few in self._passes(examples)]
        for few in self.compute.collator.largest(passes):
            if not accumulates:
                optimizer.zero_grad(set_to_none=not self.group.has_copies)
            self._loss(self.compute.batch(few)).backward()
        optimizer.zero_grad(set_to_none=True)
        del self.forward
        self._set_random(random)

    def steps(self, start: int = 0) -> Iterator[Step]:
        """Train from step `start` to the end, or to the first step whose loss or gradient isn't finite.

        Such a step is yielded without being applied, and is the last. No gradient outlives it.
        """
        self.model.train()
        for index, examples in enumerate(self._batches()):
            if index >= start:
                step = self._step(index, examples)
                yield step
                if not step.is_finite:
                    break
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """Trained weights, optimizer and random state: all that the next step depends on, beside its number.

        Of a sharded model all processes have to ask for it, and the first gets it.
        """
        optimizer = self.optimizer.state_dict()
        moments = {
            index: {name: self.group.kept(value) for name, value in state.items()}
            for index, state in optimizer["state"].items()
        }
        return {
            "weights": [self.group.kept(weight.detach()) for weight in self.trained],
            "optimizer": optimizer | {"state": moments},
            "random": self.group.stacked(self._random()),
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        for weight, saved in zip(self.trained, state["weights"], strict=True):
            weight.copy_(sharded_as(weight, saved))
        optimized = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        moments = {
            index: {name: sharded_as(optimized[index], value) for name, value in state.items()}
            for index, state in state["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict(state["optimizer"] | {"state": moments})
        self._set_random(self.group.own(state["random"]))

    def _random(self) -> dict[str, torch.Tensor]:
        """The random state by device: torch's own, and that of a GPU."""
        random = {"cpu": torch.get_rng_state()}
        accelerator = self.compute.accelerator
        if accelerator.device is not Device.cpu:
            random[accelerator.kind] = getattr(torch, accelerator.kind).get_rng_state()
        return random

    def _set_random(self, random: dict[str, torch.Tensor]) -> None:
        for kind, state in random.items():
            torch.set_rng_state(state) if kind == "cpu" else getattr(torch, kind).set_rng_state(state)

    def _batches(self) -> Iterator[list[Example]]:
        """The examples of every step, in order."""
        for epoch in range(self.settings.epochs):
            for rows in epoch_order(len(self.examples), self.seed, epoch).split(self.settings.batch_size):
                yield [self.examples[row] for row in rows.tolist()]

    def _step(self, index: int, examples: Sequence[Example]) -> Step:
        started = time.perf_counter()
        lr = self.settings.lr_at(index, self.total_steps, self.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        label_tokens = sum(len(example.label) for example in examples)
        losses = []
        passes = self._own(self._passes(examples))
        for number, few in enumerate(passes, start=1):
            batch = self.compute.batch(few or examples[:1])
            with self.group.synchronised(self.forward, number == len(passes)):
                loss = self._loss(batch) / label_tokens * bool(few)
                (loss * self.group.rank.size).backward()  # of which processes take the mean
            losses.append(loss.detach())
        norm = whole(nn.utils.clip_grad_norm_(self.trained, self.settings.max_grad_norm or math.inf))
        loss = self.group.total(torch.stack(losses).sum())
        loss_value, norm_value = torch.stack([loss, norm.to(loss)]).tolist()
        if math.isfinite(loss_value) and math.isfinite(norm_value):
            self.optimizer.step()
            self.memory = self.memory or self._memory()
        self.optimizer.zero_grad(set_to_none=not self.group.has_copies)  # theirs lie in room that is kept
        self.compute.accelerator.synchronize()
        return Step(
            index=index,
            lr=lr,
            loss=loss_value,
            grad_norm=norm_value,
            tokens=sum(len(example) for example in examples),
            label_tokens=label_tokens,
            seconds=time.perf_counter() - started,
        )

    def _passes(self, examples: Sequence[Example]) -> list[Sequence[Example]]:
        """What the forward passes of a step take, in all processes together."""
        few = self._at_once
        return [examples[start : start + few] for start in range(0, len(examples), few)]

    def _own(self, passes: Sequence[Sequence[Example]]) -> list[Sequence[Example]]:
        """The part of them that this process does: as many as the first one's, if need be without examples."""
        rank = self.group.rank
        each = self.settings.batch_size // (rank.size * self._at_once)
        own = list(passes[rank.index * each :][:each])
        return own + [()] * (min(each, len(passes)) - len(own))

    def _loss(self, batch: Batch) -> torch.Tensor:
        """Summed negative log-likelihood of the label tokens. The logits themselves don't outlive it."""
        with self.compute.autocast:
            logits, targets = label_logits(self.model, batch, self.forward, alone=self.group.is_alone)
        return functional.cross_entropy(logits, targets, reduction="sum")

    def _memory(self) -> MemoryParts:
        """Bytes held between the optimizer's step and the end of the gradients."""
        return MemoryParts(
            weight_bytes=sum(local(weight).nbytes for weight in self.model.parameters()),
            gradient_bytes=sum(local(weight.grad).nbytes for weight in self.trained if weight.grad is not None),
            optimizer_bytes=sum(local(state).nbytes for state in optimizer_tensors(self.optimizer)),
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


def weights_are_finite(model: nn.Module) -> bool:
    """Whether every trained weight is a finite number."""
    return all(bool(torch.isfinite(whole(p.detach())).all()) for p in model.parameters() if p.requires_grad)
