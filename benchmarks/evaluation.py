"""Evaluation against its peers: batched `generate`, and one likelihood pass a label.

One model is trained first, so that most of its answers are right, as they are where anyone evaluates. Free answers
race against transformers' `generate` (greedy, KV cache, early stop), on the same batches of similar length and on
batches in the data's own order; constrained ones against scoring every message under every label. The decisions have
to be the same, else the benchmark ends with an error. The likelihood passes ask another question (the likeliest whole
label, not the likeliest next token within the labels): of them the share of equal answers is printed.

ARGS="evaluation model=pocket-4m epochs=3 rounds=3 data=DIR" narrows it; `data` is a folder of Banking77's CSVs.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoTokenizer

from ftmatrix.data import Message, Pocket
from ftmatrix.data.banking77 import Banking77
from ftmatrix.lm import Collator, Compute, Evaluating, Evaluator, Framer, Framing, Trainer, Training, label_logits
from ftmatrix.machine import Accelerator, Device, Precision, pick, seed_everything
from ftmatrix.models import PACKAGED, Checkpoint, load_model

LR = 2e-3
SCORED = 50
"""Messages that the likelihood passes score: each takes as many forward rows as there are labels."""


def train(name: str, messages: Sequence[Message], epochs: int, accelerator: Accelerator) -> tuple[nn.Module, Framer]:
    """A packaged model, fine-tuned in full."""
    seed_everything(0, accelerator.device)
    tokenizer = AutoTokenizer.from_pretrained(PACKAGED / name)
    framer = Framer(Framing(), tokenizer, sorted({message.label for message in messages}))
    model = load_model(Checkpoint(PACKAGED / name, "", 0), dtype=torch.float32, device=accelerator.kind)
    trainer = Trainer(
        model,
        framer.frame(messages),
        Compute(Collator(framer.pad_id), accelerator, Precision.fp32),
        settings=Training(epochs=epochs, batch_size=32),
        lr=LR,
        seed=0,
    )
    for step in trainer.steps():
        if step.index % 50 == 0:
            print(f"training {name}: step {step.index} of {trainer.total_steps}, loss {step.loss:.3f}", flush=True)
    return model, framer


@torch.no_grad()
def by_generate(evaluator: Evaluator, messages: Sequence[Message], *, by_length: bool) -> list[str]:
    """Greedy answers of `generate`, to its end token or the length of the longest label."""
    prompts = evaluator.framer.prompts([message.text for message in messages])
    order = list(range(len(prompts)))
    if by_length:
        order.sort(key=lambda row: len(prompts[row]))
    answers = [""] * len(prompts)
    size, framer = evaluator.settings.batch_size, evaluator.framer
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        width = max(len(prompts[row]) for row in rows)
        padded = [[framer.pad_id] * (width - len(prompts[row])) + prompts[row] for row in rows]
        seen = [[0] * (width - len(prompts[row])) + [1] * len(prompts[row]) for row in rows]
        written = evaluator.model.generate(  # type: ignore[operator]
            input_ids=torch.tensor(padded),
            attention_mask=torch.tensor(seen),
            do_sample=False,
            max_new_tokens=framer.longest_label,
            eos_token_id=framer.eos_id,
            pad_token_id=framer.pad_id,
        )
        for row, ids in zip(rows, written[:, width:].tolist(), strict=True):
            ended = framer.eos_id in ids
            text = framer.text(ids[: ids.index(framer.eos_id)] if ended else ids)
            answers[row] = (framer.read(ids[: ids.index(framer.eos_id)]) or text) if ended else text
    return answers


@torch.no_grad()
def by_likelihood(evaluator: Evaluator, messages: Sequence[Message]) -> list[str]:
    """The label under which each message's label tokens have the highest summed log-likelihood, a pass a label."""
    framer = evaluator.framer
    answers = []
    for message in messages:
        examples = framer.frame([Message(message.text, label) for label in framer.labels])
        scores = []
        for start in range(0, len(examples), evaluator.settings.batch_size):
            chosen = examples[start : start + evaluator.settings.batch_size]
            logits, targets = label_logits(evaluator.model, Collator(framer.pad_id, None)(chosen))
            nlls = nn.functional.cross_entropy(logits, targets, reduction="none")
            scores += [float(nll.sum()) for nll in nlls.split([len(example.label) for example in chosen])]
        answers.append(framer.labels[scores.index(min(scores))])
    return answers


def profile(evaluator: Evaluator, messages: Sequence[Message]) -> dict[str, float]:
    """Milliseconds a message of the parts that `predict` is made of, each timed alone."""
    examples = evaluator.framer.frame(messages)
    began = time.perf_counter()
    golds = evaluator.gold_pass(examples)
    passed = time.perf_counter()
    missed = [example.prompt for example, gold in zip(examples, golds, strict=True) if not gold.hit]
    written = evaluator.generate(missed)
    answered = time.perf_counter()
    labels = set(evaluator.framer.label_ids.values())
    undecided = [prompt for prompt, ids in zip(missed, written, strict=True) if ids not in labels]
    evaluator.choose(undecided)
    chosen = time.perf_counter()
    scale = 1000 / len(messages)
    return {
        "one pass under the gold prefix": scale * (passed - began),
        f"free answers to the {len(missed)} misses": scale * (answered - passed),
        f"constrained ones to the {len(undecided)} still open": scale * (chosen - answered),
    }


def timed(work: Callable[[], list[str]]) -> tuple[float, list[str]]:
    began = time.perf_counter()
    answers = work()
    return time.perf_counter() - began, answers


def main() -> None:
    options = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    path, name, rounds = options.get("data", ""), options.get("model", "pocket-4m"), int(options.get("rounds", "3"))
    data = (Banking77(name="banking77", path=path) if path else Pocket(name="pocket")).load()
    accelerator = pick(Device.auto)
    model, framer = train(name, data.train, int(options.get("epochs", "3")), accelerator)
    evaluator = Evaluator(
        model, framer, Compute(Collator(framer.pad_id), accelerator, Precision.fp32), settings=Evaluating()
    )
    few = data.test[:: max(1, len(data.test) // SCORED)]
    prompts = [tuple(prompt) for prompt in framer.prompts([message.text for message in data.test])]
    ways: dict[str, Callable[[], list[str]]] = {
        "free and constrained answers, ftmatrix": lambda: [p.answer for p in evaluator.predict(data.test)[0]],
        "free answers, generate, by length": lambda: by_generate(evaluator, data.test, by_length=True),
        "free answers, generate, as they come": lambda: by_generate(evaluator, data.test, by_length=False),
        "constrained answers, ftmatrix": lambda: evaluator.choose(prompts),
        "constrained answers, a pass a label": lambda: by_likelihood(evaluator, few),
    }
    found: dict[str, list[float]] = {way: [] for way in ways}
    answers: dict[str, list[str]] = {}
    evaluator.predict(few)  # what is loaded or settled by a first call
    for _ in range(rounds):
        for way, work in ways.items():
            seconds, answers[way] = timed(work)
            found[way].append(1000 * seconds / len(answers[way]))
    free, *peers, chosen, passes = ways
    for peer in peers:
        if answers[peer] != answers[free]:
            apart = sum(one != other for one, other in zip(answers[peer], answers[free], strict=True))
            sys.exit(f"{peer}: {apart} of {len(data.test)} answers differ from ours: not the same work")
    table = Table(title=f"Evaluation of {len(data.test)} messages ({os.cpu_count()} cores)", title_justify="left")
    for column in ("", "ms a message", "time, paired (least to most)"):
        table.add_column(column, justify="right" if column else "left")
    for group, own in (((free, *peers), free), ((chosen, passes), chosen)):
        for way in group:
            ratios = [other / ours for other, ours in zip(found[way], found[own], strict=True)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            table.add_row(way, f"{statistics.median(found[way]):.2f}", spread)
        table.add_section()
    right = sum(answer == message.label for answer, message in zip(answers[free], data.test, strict=True))
    greedy = [answers[chosen][data.test.index(message)] for message in few]
    same = sum(one == other for one, other in zip(greedy, answers[passes], strict=True))
    console = Console(width=110)
    console.print(table)
    parts = ", ".join(f"{part} {ms:.2f} ms" for part, ms in profile(evaluator, data.test).items())
    console.print(f"A message's free and constrained answers: {parts}", highlight=False)
    console.print(
        f"{name}: {right / len(data.test):.1%} of the free answers are right; of {len(few)} messages, {same} have the "
        "same constrained answer by greedy decoding and by likelihood"
    )


if __name__ == "__main__":
    main()
