"""Scoring a split: exact match of what greedy decoding writes, without generating what is already decided.

Greedy decoding writes the gold label exactly when, under the gold prefix, the argmax at every label position is the
gold token. One forward pass therefore decides every message; only the misses are then decoded, freely for the
confusion matrix, and once more within the label set where the free answer is none of the labels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessor

from ftmatrix.data import Message
from ftmatrix.lm.batches import label_logits
from ftmatrix.lm.compute import Compute
from ftmatrix.lm.framing import Example, Framer
from ftmatrix.lm.settings import Evaluating
from ftmatrix.records import Prediction

PASSAGES_AT_ONCE = 2
"""Windows of running text a forward pass takes: no more logits than a batch of messages has."""


@dataclass(frozen=True)
class GoldPass:
    """What one forward pass under the gold prefix tells of a message; `nll` is the sum over its label tokens."""

    hit: bool
    nll: float
    label_tokens: int


class WithinLabels(LogitsProcessor):
    """Leaves greedy decoding only the tokens that go on with a label. The device is asked once a token, not once a row.

    `followers` are the tokens that may follow each beginning of a label, `width` the prompts' tokens; after a whole
    label only `end` may follow.
    """

    def __init__(self, followers: dict[tuple[int, ...], list[int]], width: int, end: int) -> None:
        self.followers, self.width, self.end = followers, width, end

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The scores (rows, vocabulary) with all other tokens at minus infinity."""
        begun = map(tuple, input_ids[:, self.width :].tolist())
        allowed = [self.followers.get(ids, [self.end]) for ids in begun]
        places = torch.tensor([(row, token) for row, tokens in enumerate(allowed) for token in tokens])
        rows, tokens = places.to(scores.device).unbind(1)
        within = torch.full_like(scores, -math.inf)
        within[rows, tokens] = scores[rows, tokens]
        return cast(torch.FloatTensor, within)


class Evaluator:
    """Scores messages with one model, framer and device."""

    def __init__(self, model: nn.Module, framer: Framer, compute: Compute, *, settings: Evaluating) -> None:
        self.model, self.framer, self.compute, self.settings = model, framer, compute, settings
        self.group = compute.group

    def rehearse(self, splits: Sequence[Sequence[Message]]) -> None:
        """Score the largest batches, and have the longest messages answered, for the memory that it takes."""
        scored: list[list[Example]] = []
        for examples in (self.framer.frame(messages) for messages in splits):
            scored += [[examples[row] for row in rows] for rows in self._batches([len(row) for row in examples])]
        for batch in self.compute.collator.largest(scored):
            self.gold_pass(batch)
        prompts = [example.prompt for examples in scored for example in examples]
        self._decode(sorted(prompts, key=len)[-self.settings.batch_size :], self._followers())

    def rehearse_text(self, text: str) -> None:
        """Score the first passages of running text, for the memory that it takes."""
        self.gold_pass(self.framer.passages(text)[:PASSAGES_AT_ONCE], PASSAGES_AT_ONCE)

    def nll(self, messages: Sequence[Message]) -> float:
        """Mean negative log-likelihood in nats of the label tokens."""
        return mean_nll(self.group.divided(self.gold_pass, self.framer.frame(messages)))

    def text_nll(self, text: str) -> float:
        """Mean negative log-likelihood in nats per token of running text."""
        few_at_once = partial(self.gold_pass, batch_size=PASSAGES_AT_ONCE)
        return mean_nll(self.group.divided(few_at_once, self.framer.passages(text)))

    @torch.no_grad()
    def gold_pass(self, examples: Sequence[Example], batch_size: int | None = None) -> list[GoldPass]:
        """Whether greedy decoding would write each label, and the label's negative log-likelihood, in order."""
        self.model.eval()
        passes: list[GoldPass | None] = [None] * len(examples)
        for rows in self._batches([len(example) for example in examples], batch_size):
            chosen = [examples[row] for row in rows]
            with self.compute.autocast:
                batch = self.compute.batch(chosen)
                logits, targets = label_logits(self.model, batch)
            nlls = nn.functional.cross_entropy(logits, targets, reduction="none").cpu()
            hits = (logits.argmax(-1) == targets).cpu()
            del logits  # not to lie beside the next batch's
            lengths = [len(example.label) for example in chosen]
            for row, nll, hit, length in zip(rows, nlls.split(lengths), hits.split(lengths), lengths, strict=True):
                passes[row] = GoldPass(bool(hit.all()), float(nll.double().sum()), length)
        return [gold for gold in passes if gold is not None]

    def predict(self, messages: Sequence[Message]) -> tuple[list[Prediction], float]:
        """The free and the constrained answer to every message, and the mean nats per label token."""
        examples = self.framer.frame(messages)
        golds = self.group.divided(self.gold_pass, examples)
        finite = [math.isfinite(gold.nll) for gold in golds]  # a broken model answers nothing, and is scored so
        missed = [row for row, gold in enumerate(golds) if finite[row] and not gold.hit]
        written = self.group.divided(self.generate, [examples[row].prompt for row in missed])
        free = dict(zip(missed, written, strict=True))
        canonical = set(self.framer.label_ids.values())
        undecided = [row for row in missed if free[row] not in canonical]
        chosen = self.group.divided(self.choose, [examples[row].prompt for row in undecided])
        constrained = dict(zip(undecided, chosen, strict=True))
        predictions = []
        for row, (message, gold) in enumerate(zip(messages, golds, strict=True)):
            nll = gold.nll / gold.label_tokens
            if not finite[row]:
                predictions.append(Prediction(message.text, message.label, "", "", valid=False, nll=nll))
                continue
            read = message.label if gold.hit else self._read(free[row])
            answer = read if read is not None else self.framer.text(free[row])
            best = constrained[row] if row in constrained else str(read)
            begins = self.framer.begin_of(free[row]) if read is None else None
            predictions.append(Prediction(message.text, message.label, answer, best, read is not None, nll, begins))
        return predictions, mean_nll(golds)

    def generate(self, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Greedy decoding of each prompt, up to and with the end token where it comes in time."""
        return self._decode(prompts, None)

    def choose(self, prompts: Sequence[tuple[int, ...]]) -> list[str]:
        """Greedy decoding within the label set: the label of each prompt."""
        label_of = {ids: label for label, ids in self.framer.label_ids.items()}
        return [label_of[ids] for ids in self._decode(prompts, self._followers())]

    def _followers(self) -> dict[tuple[int, ...], list[int]]:
        """The tokens that may follow each beginning of a label."""
        followers: dict[tuple[int, ...], list[int]] = {}
        for ids in self.framer.label_ids.values():
            for length in range(len(ids)):
                allowed = followers.setdefault(ids[:length], [])
                if ids[length] not in allowed:
                    allowed.append(ids[length])
        return followers

    @torch.no_grad()
    def _decode(
        self, prompts: Sequence[tuple[int, ...]], followers: dict[tuple[int, ...], list[int]] | None
    ) -> list[tuple[int, ...]]:
        self.model.eval()
        answers: list[tuple[int, ...]] = [()] * len(prompts)
        for rows in self._batches([len(prompt) for prompt in prompts]):
            width = max(len(prompts[row]) for row in rows)
            input_ids = torch.full((len(rows), width), self.framer.pad_id)
            attention_mask = torch.zeros_like(input_ids)
            for line, row in enumerate(rows):  # left padding: generation goes on at the right edge
                input_ids[line, width - len(prompts[row]) :] = torch.tensor(prompts[row])
                attention_mask[line, width - len(prompts[row]) :] = 1
            with self.compute.autocast:
                written = self.model.generate(  # type: ignore[operator]
                    input_ids=input_ids.to(self.compute.accelerator.kind),
                    attention_mask=attention_mask.to(self.compute.accelerator.kind),
                    generation_config=self._greedy(),
                    logits_processor=[WithinLabels(followers, width, self.framer.eos_id)] if followers else None,
                )
            for row, ids in zip(rows, written[:, width:].tolist(), strict=True):
                end = ids.index(self.framer.eos_id) + 1 if self.framer.eos_id in ids else len(ids)
                answers[row] = tuple(ids[:end])
        return answers

    def _greedy(self) -> GenerationConfig:
        """Plain greedy decoding; what it leaves open comes from the model's own config, which `load_model` bared."""
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=self.framer.longest_label,
            eos_token_id=self.framer.eos_id,
            pad_token_id=self.framer.pad_id,
        )

    def _read(self, ids: tuple[int, ...]) -> str | None:
        """The label that a finished answer spells; an answer that never ended spells none."""
        return self.framer.read(ids[:-1]) if ids and ids[-1] == self.framer.eos_id else None

    def _batches(self, lengths: Sequence[int], batch_size: int | None = None) -> list[list[int]]:
        """Rows in batches of similar length, so that little is padding."""
        order = sorted(range(len(lengths)), key=lambda row: lengths[row])
        size = batch_size or self.settings.batch_size
        return [order[start : start + size] for start in range(0, len(order), size)]


def mean_nll(golds: Sequence[GoldPass]) -> float:
    """Nats per label token over all messages."""
    return sum(gold.nll for gold in golds) / sum(gold.label_tokens for gold in golds)
