"""Pretraining: an interrupted run goes on as if nothing had happened."""

from pathlib import Path
from typing import Any

import pytest

from ftmatrix.data import Pocket
from ftmatrix.pretraining.__main__ import main
from ftmatrix.pretraining.corpus import PackedWindows, encode, find_sources
from ftmatrix.pretraining.run import Plan, Pretraining


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = [message.text for message in Pocket(name="pocket").load().train]
    (folder / "one.txt").write_text("\n".join(texts[:1200]))
    (folder / "two.txt").write_text("\n".join(texts[1200:]))
    return folder


def toy(corpus: Path, tokenizer: Any, tmp_path: Path, steps: int = 12) -> Pretraining:
    tokens = [encode(source, tokenizer, tmp_path / "tokens") for source in find_sources(corpus, {"two": 2.0})]
    plan = Plan(size="pocket-1m", tokens=steps * 4 * 32, length=32, batch=4, warmup_steps=3)
    return Pretraining(plan, tokenizer, tokens, "cpu")


def test_a_resumed_run_gives_the_uninterrupted_curve(corpus: Path, tokenizer: Any, tmp_path: Path) -> None:
    whole = [progress.loss for progress in toy(corpus, tokenizer, tmp_path).steps()]
    first = toy(corpus, tokenizer, tmp_path)
    curve = []
    for progress in first.steps():
        curve.append(progress.loss)
        if progress.step == 5:
            first.checkpoint(tmp_path / "checkpoint.pt")
        if progress.step == 7:
            break  # killed two steps after its last checkpoint
    second = toy(corpus, tokenizer, tmp_path)
    second.resume(tmp_path / "checkpoint.pt")
    assert curve[:5] + [progress.loss for progress in second.steps()] == whole


def test_a_longer_plan_takes_up_the_plateau_and_nothing_later(corpus: Path, tokenizer: Any, tmp_path: Path) -> None:
    short, longer = toy(corpus, tokenizer, tmp_path), toy(corpus, tokenizer, tmp_path, steps=16)
    for progress in short.steps():
        if progress.step == short.plan.decay_start:
            short.checkpoint(tmp_path / "plateau.pt")
    short.checkpoint(tmp_path / "end.pt")
    with pytest.raises(ValueError, match="another plan"):
        longer.resume(tmp_path / "end.pt")
    longer.resume(tmp_path / "plateau.pt")
    assert longer.step == short.plan.decay_start == 9
    whole = [progress.loss for progress in toy(corpus, tokenizer, tmp_path, steps=16).steps()]
    assert [progress.loss for progress in longer.steps()] == whole[9:]


def test_another_plans_checkpoint_is_refused(corpus: Path, tokenizer: Any, tmp_path: Path) -> None:
    training = toy(corpus, tokenizer, tmp_path)
    training.checkpoint(tmp_path / "checkpoint.pt")
    training.plan = Plan(size="pocket-1m", tokens=1)
    with pytest.raises(ValueError, match="another plan"):
        training.resume(tmp_path / "checkpoint.pt")


def test_windows_depend_on_seed_and_step_alone(corpus: Path, tokenizer: Any, tmp_path: Path) -> None:
    tokens = [encode(source, tokenizer, tmp_path / "tokens") for source in find_sources(corpus, {})]
    windows = PackedWindows(tokens, length=16, batch=3, seed=0)
    assert windows.at(4).equal(PackedWindows(tokens, length=16, batch=3, seed=0).at(4))
    assert not windows.at(4).equal(windows.at(5))
    assert windows.at(4).shape == (3, 17)


def test_the_command_trains_exports_and_resumes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    arguments = f"pocket-1m --corpus {corpus} --tokens 512 --length 32 --batch 4 --work {tmp_path / 'work'}".split()
    main(arguments)
    assert "bits per byte held out" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "work" / "pocket-1m" / "model")
    assert model.config.model_type == "gemma3_text"
    assert AutoTokenizer.from_pretrained(tmp_path / "work" / "pocket-1m" / "model").eos_token == "<eos>"
    main(arguments)
    assert "resumed at step 4 of 4" in capsys.readouterr().out


@pytest.mark.parametrize(("weights", "said"), [({"three": 1.0}, "weight for three: no such file")])
def test_an_unknown_weight_is_refused(weights: dict[str, float], said: str, corpus: Path) -> None:
    with pytest.raises(ValueError, match=said):
        find_sources(corpus, weights)


def test_many_small_files_are_one_corpus(corpus: Path, tokenizer: Any, tmp_path: Path) -> None:
    lines = (corpus / "one.txt").read_text().splitlines()
    folder = tmp_path / "small"
    folder.mkdir()
    for number in range(400):  # a document each
        (folder / f"text.{number}.txt").write_text("\n".join(lines[number % 100 :: 100]))
    training = Pretraining(
        Plan(size="pocket-1m", tokens=4 * 32, length=256, batch=4),
        tokenizer,
        [encode(source, tokenizer, tmp_path / "tokens") for source in find_sources(folder, {})],
        "cpu",
    )
    (pool,) = training.sources
    assert len(pool.train) > 50 * len(pool.held_out) > 0
    assert 0 < training.bits_per_byte() < 20


def test_a_corpus_too_small_to_measure_by_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("only a line\n" * 300)
    with pytest.raises(ValueError, match="nothing is held out to measure by"):
        toy_on(tmp_path, tokenizer, tmp_path / "cache")


def toy_on(folder: Path, tokenizer: Any, cache: Path) -> Pretraining:
    tokens = [encode(source, tokenizer, cache) for source in find_sources(folder, {})]
    return Pretraining(Plan(size="pocket-1m", tokens=128, length=32, batch=4), tokenizer, tokens, "cpu")


def test_a_checkpoint_of_another_corpus_is_refused(corpus: Path, tokenizer: Any, tmp_path: Path) -> None:
    training = toy(corpus, tokenizer, tmp_path)
    training.checkpoint(tmp_path / "checkpoint.pt")
    text = (corpus / "one.txt").read_text()
    (corpus / "one.txt").write_text(text.replace("a", "e"))  # as long as before
    with pytest.raises(ValueError, match="was written on another corpus"):
        toy(corpus, tokenizer, tmp_path).resume(tmp_path / "checkpoint.pt")


def test_two_files_of_one_name_are_refused(corpus: Path) -> None:
    (corpus / "one.txt.xz").write_bytes(b"")
    with pytest.raises(ValueError, match="have one name"):
        find_sources(corpus, {})
