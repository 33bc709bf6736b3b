"""Methods: what each trains, what it leaves alone, and what merging gives."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from transformers import AutoModelForCausalLM

from ftmatrix.arms import FullFineTuning, Lora, Method, Quantization
from ftmatrix.cell import load_adapted
from ftmatrix.data import Message
from ftmatrix.errors import ConfigError, UnsupportedError
from ftmatrix.lm import Collator, Compute, Framer, Group, Trainer, Training, label_logits
from ftmatrix.machine import Accelerator, Precision, autocast
from ftmatrix.models import Checkpoint, load_model
from ftmatrix.spec import Cell, ReadyCell, prepare

METHODS: dict[str, Callable[[], Method]] = {
    "full": lambda: FullFineTuning(name="full"),
    "lora": lambda: Lora(name="lora"),
    "qlora": lambda: Lora(name="qlora", quantize=Quantization.nf4),
    "dora": lambda: Lora(name="dora", dora=True),
    "rslora": lambda: Lora(name="rslora", rslora=True),
}


def adapted(method: Method, folder: Path, precision: Precision = Precision.fp32) -> Any:
    torch.manual_seed(0)
    model = load_model(
        Checkpoint(folder, "test", 0),
        dtype=method.weights_dtype(precision),
        device="cpu",
        quantization=method.quantization(precision),
    )
    return method.adapt(model, precision)


@pytest.mark.skipif(sys.platform != "linux", reason="maps are Linux's")
def test_weights_that_were_quantised_dont_stay_in_memory(model_folders: dict[str, Path]) -> None:
    """The file is mapped, all of it, as long as one tensor lies in it; a resident set would count it."""
    mapped = str(model_folders["gemma"] / "model.safetensors")
    model = adapted(METHODS["qlora"](), model_folders["gemma"])
    assert mapped not in Path("/proc/self/maps").read_text()
    del model
    plain = adapted(METHODS["lora"](), model_folders["gemma"])
    assert mapped in Path("/proc/self/maps").read_text()  # frozen weights may lie there
    assert plain is not None


def train(model: Any, framer: Framer, messages: tuple[Message, ...], cpu: Accelerator) -> None:
    trainer = Trainer(
        model,
        framer.frame(messages[:48]),
        Compute(Collator(framer.pad_id), cpu, Precision.fp32),
        settings=Training(epochs=2, weight_decay=0.1),
        lr=1e-2,
        seed=0,
    )
    steps = list(trainer.steps())
    assert steps[-1].loss < steps[0].loss


def copied(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("architecture", ["gemma", "llama"])
def test_a_method_changes_what_it_trains_and_nothing_else(
    name: str,
    architecture: str,
    model_folders: dict[str, Path],
    framer: Framer,
    messages: tuple[Message, ...],
    cpu: Accelerator,
) -> None:
    model = adapted(METHODS[name](), model_folders[architecture])
    before = copied(model)
    train(model, framer, messages, cpu)
    changed = {key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])}
    if name == "full":
        assert changed == set(before)
    else:
        adapters = {key for key in before if "lora_" in key}
        assert changed == adapters
        layers = {key.split(".lora_A")[0] for key in adapters if ".lora_A" in key}
        assert len(layers) == 2 * 7  # q, k, v, o, gate, up and down of two layers; never the output layer


@pytest.mark.parametrize("name", ["lora", "dora", "rslora"])
def test_merged_adapters_give_the_same_logits(
    name: str, model_folders: dict[str, Path], framer: Framer, messages: tuple[Message, ...], cpu: Accelerator
) -> None:
    model = adapted(METHODS[name](), model_folders["gemma"])
    train(model, framer, messages, cpu)
    model.eval()
    batch = Collator(framer.pad_id, None)(framer.frame(messages[:8]))
    with torch.no_grad():
        apart = model(**batch.inputs).logits
        merged = model.merge_and_unload()
        together = merged(**batch.inputs).logits
    torch.testing.assert_close(apart, together, atol=1e-4, rtol=1e-4)


def test_qlora_freezes_a_base_in_nf4(model_folders: dict[str, Path]) -> None:
    model = adapted(METHODS["qlora"](), model_folders["llama"])
    quantised = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert len(quantised) == 2 * 7
    for module in quantised:
        assert isinstance(module.weight, Params4bit)
        assert module.weight.quant_type == "nf4"
        assert module.weight.quant_state.nested, "double quantisation"
        assert not module.weight.requires_grad
    assert not isinstance(model.get_output_embeddings(), Linear4bit)


def test_evaluation_leaves_a_quantised_base_as_it_is(
    model_folders: dict[str, Path], framer: Framer, messages: tuple[Message, ...]
) -> None:
    model = adapted(METHODS["qlora"](), model_folders["gemma"])
    batch = Collator(framer.pad_id, None)(framer.frame(messages[:8]))
    kept = [module.weight.data.clone() for module in model.modules() if isinstance(module, Linear4bit)]
    with torch.no_grad():
        training = model.train()(**batch.inputs).logits
        evaluating = model.eval()(**batch.inputs).logits
    torch.testing.assert_close(training, evaluating)
    now = [module.weight.data for module in model.modules() if isinstance(module, Linear4bit)]
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", [Precision.fp32, Precision.mixed, Precision.bf16])
@pytest.mark.parametrize("architecture", ["gemma", "llama"])
def test_a_precision_computes_the_same_for_a_trained_and_a_frozen_base(
    architecture: str,
    precision: Precision,
    stored: torch.dtype,
    model_folders: dict[str, Path],
    tmp_path: Path,
    framer: Framer,
    messages: tuple[Message, ...],
    cpu: Accelerator,
) -> None:
    again = AutoModelForCausalLM.from_pretrained(model_folders[architecture], dtype=stored)
    again.save_pretrained(tmp_path)
    batch = Collator(framer.pad_id, None)(framer.frame(messages[:8]))
    logits = []
    for name in ("full", "lora"):
        with torch.no_grad(), autocast(cpu, precision):
            logits.append(label_logits(adapted(METHODS[name](), tmp_path, precision).eval(), batch)[0])
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("precision", "trained", "adapter", "linear", "rest"),
    [
        (Precision.fp32, torch.float32, torch.float32, torch.float32, torch.float32),
        (Precision.mixed, torch.float32, torch.float32, torch.bfloat16, torch.float32),
        (Precision.bf16, torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.bfloat16),
    ],
)
def test_weights_are_stored_as_the_precision_says(
    precision: Precision,
    trained: torch.dtype,
    adapter: torch.dtype,
    linear: torch.dtype,
    rest: torch.dtype,
    model_folders: dict[str, Path],
) -> None:
    model = adapted(METHODS["full"](), model_folders["gemma"], precision)
    assert {parameter.dtype for parameter in model.parameters()} == {trained}
    model = adapted(METHODS["lora"](), model_folders["gemma"], precision)
    for name, parameter in model.named_parameters():
        expected = adapter if "lora_" in name else linear if "_proj" in name else rest
        assert parameter.dtype == expected, name


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"r": 0}, "rank must be at least 1"),
        ({"alpha": 0.0}, "must be a number above 0"),
        ({"alpha": float("nan")}, "must be a number above 0"),
        ({"dropout": 1.0}, r"in \[0, 1\)"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Lora(name="lora", **settings).check()


def test_a_method_that_trains_nothing_is_told_so(quick_cell: Callable[..., Cell]) -> None:
    @dataclass
    class Nothing(FullFineTuning):
        def adapt(self, model: Any, precision: Precision) -> Any:
            return model.requires_grad_(False)

    (ready,) = prepare([quick_cell("method=full", "lr=1e-3")])
    assert isinstance(ready, ReadyCell)
    ready = replace(ready, cell=replace(ready.cell, method=Nothing(name="nothing")))
    with pytest.raises(
        UnsupportedError, match="method=nothing: trains no weight; its `adapt` sets requires_grad on none"
    ):
        load_adapted(ready, Group())
