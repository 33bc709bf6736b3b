"""The pretraining loop: packed windows, warm-up, plateau and decay, checkpoints that resume to the same loss curve."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Gemma3ForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from ftmatrix.machine import replacing
from ftmatrix.pretraining.corpus import PackedWindows, Tokens, pooled
from ftmatrix.pretraining.sizes import SIZES

DECAYING = 0.3
"""The last share of a run's steps, in which the rate falls; before them it stays at the peak."""


@dataclass(frozen=True)
class Plan:
    """What decides the result of a pretraining run. Lengths are in tokens."""

    size: str
    tokens: int
    length: int = 256
    batch: int = 16
    warmup_steps: int = 200
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    seed: int = 0
    bf16: bool = False  # matrix products in bf16 (autocast) over fp32 weights

    @property
    def steps(self) -> int:
        return math.ceil(self.tokens / (self.length * self.batch))

    @property
    def decay_start(self) -> int:
        """First step whose rate falls. A checkpoint of this step can be taken up by a longer plan."""
        return self.steps - math.floor(self.steps * DECAYING)

    def lr(self, step: int) -> float:
        """Linear warm-up, plateau, linear decay to a hundredth of the peak (the "WSD" schedule, arXiv:2404.06395)."""
        peak = SIZES[self.size].peak_lr
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        if step < self.decay_start:
            return peak
        left = (self.steps - step) / (self.steps - self.decay_start)
        return peak * (0.01 + 0.99 * left)

    def continues(self, other: "Plan", step: int) -> bool:
        """Whether a run that made its first `step` steps by the other plan can go on by this one."""
        same_work = replace(self, tokens=other.tokens) == other
        return same_work and step <= self.steps and all(self.lr(done) == other.lr(done) for done in range(step))


@dataclass(frozen=True)
class Progress:
    """One step: the mean loss is in nats per token."""

    step: int
    loss: float
    lr: float
    tokens_per_second: float


class Pretraining:
    """A model, its optimiser and the next step; `checkpoint` and `resume` keep all three."""

    def __init__(self, plan: Plan, tokenizer: PreTrainedTokenizerFast, sources: list[Tokens], device: str) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.tokenizer, self.device = plan, tokenizer, device
        self.corpus = [[tokens.source.name, tokens.source.digest, tokens.source.weight] for tokens in sources]
        self.sources = pooled(sources, plan.length + 2)
        self.windows = PackedWindows(self.sources, length=plan.length, batch=plan.batch, seed=plan.seed)
        self.model = Gemma3ForCausalLM(SIZES[plan.size].config(tokenizer))
        nn.Module.to(self.model, device)
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=plan.lr(0), betas=(0.9, 0.95), fused=True)
        self.step = 0
        self.seconds = 0.0

    def steps(self, *, compile_model: bool = False) -> Iterator[Progress]:
        """Train from the present step to the plan's end."""
        loss_of: Callable[[Any, Tensor], Tensor] = torch.compile(next_token_loss) if compile_model else next_token_loss
        autocast = torch.autocast(self.device, torch.bfloat16, enabled=self.plan.bf16)
        while self.step < self.plan.steps:
            started = time.perf_counter()
            for group in self.optimizer.param_groups:
                group["lr"] = self.plan.lr(self.step)
            batch = self.windows.at(self.step).to(self.device)
            with autocast:
                loss = loss_of(self.model, batch)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(f"step {self.step}: loss is {value}; lower the size's peak_lr")
            took = time.perf_counter() - started
            self.seconds += took
            self.step += 1
            yield Progress(self.step, value, self.plan.lr(self.step - 1), batch[:, 1:].numel() / took)

    def checkpoint(self, path: Path) -> None:
        """Write everything that the next step needs, atomically."""
        state = {
            "plan": asdict(self.plan),
            "corpus": self.corpus,
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with replacing(path) as file:
            torch.save(state, file)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint, by the same plan or by a longer one while the rate has not begun to fall.

        Raises:
            ValueError: the steps made so far are not this plan's, or not on this corpus.
        """
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["corpus"] != self.corpus:
            raise ValueError(f"{path} was written on another corpus or with other weights; take another --work")
        if not self.plan.continues(Plan(**state["plan"]), state["step"]):
            raise ValueError(f"{path} was written by another plan: {state['plan']}; take another --work, or that plan")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    @torch.no_grad()
    def bits_per_byte(self, *, windows_per_source: int | None = 64) -> float:
        """Held-out bits per byte over all sources, each counted by its held-out size.

        Long streams are cut into windows; `windows_per_source` bounds them (None: all), evenly spaced.
        """
        self.model.eval()
        bits = total_bytes = 0.0
        length = self.plan.length
        for tokens in self.sources:
            if len(tokens.held_out) < 2:
                continue
            starts = range(0, len(tokens.held_out) - length - 1, length) or range(1)  # a short stream is one window
            stride = math.ceil(len(starts) / windows_per_source) if windows_per_source else 1
            rows = [torch.from_numpy(tokens.held_out[s : s + length + 1].astype("int64")) for s in starts[::stride]]
            batches = torch.stack(rows).to(self.device).split(self.plan.batch)
            nats = sum(next_token_loss(self.model, batch).item() * len(batch) for batch in batches) / len(rows)
            bytes_here = tokens.held_out_bytes
            bits += nats / math.log(2) * len(tokens.held_out)
            total_bytes += bytes_here
        self.model.train()
        return bits / total_bytes

    def export(self, folder: Path, facts: dict[str, object]) -> None:
        """Write the model as bf16 safetensors with tokenizer, configs and the facts of its training."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.to(torch.bfloat16) for name, tensor in self.model.state_dict().items()}
        exported = Gemma3ForCausalLM(self.model.config)
        nn.Module.to(exported, torch.bfloat16)
        exported.load_state_dict(weights)
        exported.generation_config = GenerationConfig(
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        exported.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        (folder / "pretraining.json").write_text(json.dumps(facts, indent=2) + "\n")


def next_token_loss(model: Any, batch: Tensor) -> Tensor:
    """Mean cross-entropy in nats of a (batch, length + 1) window's next tokens."""
    hidden = model.model(input_ids=batch[:, :-1], use_cache=False).last_hidden_state  # (B, T, hidden)
    logits = model.lm_head(hidden).flatten(0, 1).float()  # (B * T, vocabulary)
    return functional.cross_entropy(logits, batch[:, 1:].flatten())
