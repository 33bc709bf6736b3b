"""Evaluation: equal to `generate`, within the label set, and scored as defined."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score
from transformers import AutoModelForCausalLM, GenerationConfig

from ftmatrix.cell import score
from ftmatrix.data import INVALID, Message
from ftmatrix.lm import PASSAGE_TOKENS, Collator, Compute, Evaluating, Evaluator, Framer, Trainer, Training
from ftmatrix.machine import Accelerator, Precision
from ftmatrix.models import Checkpoint, load_model
from ftmatrix.records import Prediction


@pytest.fixture(scope="module")
def models(model_folders: dict[str, Path], tokenizer: Any, messages: tuple[Message, ...], cpu: Accelerator) -> Any:
    """The same architecture untrained, and trained for long enough to get most messages right."""
    from ftmatrix.lm import Framing

    framer = Framer(Framing(), tokenizer, sorted({message.label for message in messages}))
    untrained = AutoModelForCausalLM.from_pretrained(model_folders["gemma"], dtype=torch.float32)
    trained = AutoModelForCausalLM.from_pretrained(model_folders["gemma"], dtype=torch.float32)
    trainer = Trainer(
        trained,
        framer.frame(messages[:96]),
        Compute(Collator(framer.pad_id), cpu, Precision.fp32),
        settings=Training(epochs=12),
        lr=3e-3,
        seed=0,
    )
    for _ in trainer.steps():
        pass
    return {"untrained": untrained, "trained": trained}


def evaluator(model: Any, framer: Framer, cpu: Accelerator) -> Evaluator:
    return Evaluator(
        model, framer, Compute(Collator(framer.pad_id), cpu, Precision.fp32), settings=Evaluating(batch_size=16)
    )


@pytest.mark.parametrize("kind", ["untrained", "trained"])
def test_exact_match_equals_generate(
    kind: str, models: Any, framer: Framer, cpu: Accelerator, messages: tuple[Message, ...]
) -> None:
    held_out = messages[96:]
    predictions, _ = evaluator(models[kind], framer, cpu).predict(held_out)
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=framer.longest_label, eos_token_id=framer.eos_id, pad_token_id=framer.pad_id
    )
    correct = []
    for message in held_out:  # one at a time: no padding, no batch, nothing shared with what is tested
        prompt = torch.tensor(framer.prompts([message.text]))
        written = (
            models[kind]
            .generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)[
                0, prompt.shape[1] :
            ]
            .tolist()
        )
        ended = framer.eos_id in written
        correct.append(ended and framer.read(written[: written.index(framer.eos_id)]) == message.label)
    assert [prediction.correct for prediction in predictions] == correct
    assert sum(correct) == 0 if kind == "untrained" else sum(correct) > len(correct) // 2


def test_misses_carry_what_was_written(
    models: Any, framer: Framer, cpu: Accelerator, messages: tuple[Message, ...]
) -> None:
    predictions, _ = evaluator(models["untrained"], framer, cpu).predict(messages[96:112])
    assert not any(prediction.valid for prediction in predictions)
    assert all(prediction.answer not in framer.labels for prediction in predictions)
    assert len({prediction.answer for prediction in predictions}) > 1
    assert all(prediction.constrained in framer.labels for prediction in predictions)


def test_constrained_decoding_takes_the_best_allowed_token_each_step(
    models: Any, framer: Framer, cpu: Accelerator, messages: tuple[Message, ...]
) -> None:
    model = models["untrained"]
    prompts = [tuple(ids) for ids in framer.prompts([message.text for message in messages[96:104]])]
    chosen = evaluator(model, framer, cpu).choose(prompts)
    for prompt, label in zip(prompts, chosen, strict=True):
        written: tuple[int, ...] = ()
        while written not in framer.label_ids.values():
            allowed = sorted({ids[len(written)] for ids in framer.label_ids.values() if ids[: len(written)] == written})
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + written])).logits[0, -1]
            written += (max(allowed, key=lambda token: logits[token].item()),)
        assert framer.label_ids[label] == written


def test_nll_doesnt_depend_on_the_batch(
    models: Any, framer: Framer, cpu: Accelerator, messages: tuple[Message, ...]
) -> None:
    one = Evaluator(
        models["trained"],
        framer,
        Compute(Collator(framer.pad_id, None), cpu, Precision.fp32),
        settings=Evaluating(batch_size=1),
    )
    many = evaluator(models["trained"], framer, cpu)
    assert one.nll(messages[96:128]) == pytest.approx(many.nll(messages[96:128]), rel=1e-5)


def prediction(label: str, answer: str | None) -> Prediction:
    return Prediction("text", label, answer or "nonsense", answer or "a", answer is not None, 0.5)


def test_figures_of_hand_made_predictions() -> None:
    made = [prediction(*pair) for pair in [("a", "a"), ("a", "b"), ("a", None), ("b", "b"), ("b", "a"), ("c", "c")]]
    evaluation = score("test", made, nll=0.5, labels=["a", "b", "c"], common=frozenset("a"), pair=("a", "b"))
    assert evaluation.accuracy == pytest.approx(3 / 6)
    assert evaluation.invalid_rate == pytest.approx(1 / 6)
    assert evaluation.accuracy_common == pytest.approx(1 / 3)
    assert evaluation.confusion == ((1, 1, 0, 1), (1, 1, 0, 0), (0, 0, 1, 0))
    gold, answered = ["a", "a", "a", "b", "b", "c"], ["a", "b", INVALID, "b", "a", "c"]
    expected = f1_score(gold, answered, labels=["a", "b", "c"], average="macro", zero_division=0)
    assert evaluation.macro_f1 == pytest.approx(expected)
    assert evaluation.pair is not None
    assert (evaluation.pair.errors, evaluation.pair.crossed) == (3, 2)
    assert evaluation.pair.low is not None
    assert evaluation.pair.low < 2 / 3 < (evaluation.pair.high or 0)


def test_a_model_that_writes_no_numbers_is_scored_as_wrong(
    model_folders: dict[str, Path], framer: Framer, cpu: Accelerator, messages: tuple[Message, ...]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folders["gemma"], dtype=torch.float32)
    model.model.norm.weight.data.fill_(float("nan"))
    predictions, nll = evaluator(model, framer, cpu).predict(messages[96:112])
    assert math.isnan(nll)
    scored = score("test", predictions, nll=nll, labels=framer.labels, common=frozenset(), pair=None)
    assert (scored.accuracy, scored.accuracy_constrained, scored.invalid_rate) == (0, 0, 1)


def test_penalties_of_the_models_own_never_decide(
    model_folders: dict[str, Path], tmp_path: Path, framer: Framer, cpu: Accelerator, messages: tuple[Message, ...]
) -> None:
    answers = []
    for penalty in (None, 1.9):
        folder = tmp_path / str(penalty)
        shutil.copytree(model_folders["gemma"], folder)
        if penalty:
            settings = json.loads((folder / "generation_config.json").read_text())
            settings |= {"repetition_penalty": penalty, "no_repeat_ngram_size": 1, "do_sample": True, "top_k": 3}
            (folder / "generation_config.json").write_text(json.dumps(settings))
        model = load_model(Checkpoint(folder, "test", 0), dtype=torch.float32, device="cpu")
        answers.append([p.answer for p in evaluator(model, framer, cpu).predict(messages[96:112])[0]])
    assert answers[0] == answers[1]


def test_an_unfinished_answer_is_no_confusion_of_a_pair() -> None:
    made = [Prediction("text", "a", "b", "b", valid=False, nll=0.5), prediction("a", "b")]
    evaluation = score("test", made, nll=0.5, labels=["a", "b"], common=frozenset("a"), pair=("a", "b"))
    assert evaluation.pair is not None
    assert (evaluation.pair.errors, evaluation.pair.crossed) == (2, 1)


def test_an_unfinished_answer_is_wrong_even_if_it_spells_the_label() -> None:
    unfinished = Prediction("text", "a", "a", "a", valid=False, nll=0.5)
    assert not unfinished.correct


def test_running_text_is_predicted_window_by_window(models: Any, framer: Framer, cpu: Accelerator) -> None:
    text = " ".join(["The ferry to the island leaves at ten past nine, and it does not wait."] * 30)
    ids = framer.tokenizer(text, add_special_tokens=False)["input_ids"]
    windows = [ids[start : start + PASSAGE_TOKENS] for start in range(0, len(ids), PASSAGE_TOKENS)]
    begin = [framer.tokenizer.bos_token_id] if framer.passages(text)[0].prompt[0] != ids[0] else []
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for window in windows:
            logits = models["trained"](input_ids=torch.tensor([[*begin, *window]])).logits[0, len(begin) : -1]
            nats += float(torch.nn.functional.cross_entropy(logits, torch.tensor(window[1:]), reduction="sum"))
            tokens += len(window) - 1
    assert len(windows) > 2
    assert evaluator(models["trained"], framer, cpu).text_nll(text) == pytest.approx(nats / tokens, rel=1e-4)
