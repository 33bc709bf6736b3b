"""Weight drift, held against weights that were really merged."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from ftmatrix.arms import FullFineTuning, Lora, Quantization
from ftmatrix.lm import adapter_drift, trained_drift
from ftmatrix.machine import Precision
from ftmatrix.models import Checkpoint, StoredTensors, load_model


def loaded(folder: Path, **options: Any) -> Any:
    checkpoint = Checkpoint(folder, "", 0)
    return load_model(checkpoint, dtype=torch.float32, device="cpu", **options)


def test_full_fine_tuning_is_held_against_the_stored_weights(model_folders: dict[str, Path]) -> None:
    model = FullFineTuning(name="full").adapt(loaded(model_folders["gemma"]), Precision.fp32)
    with StoredTensors(model_folders["gemma"]) as stored:
        unchanged = trained_drift(model, stored.get)
        assert unchanged is not None
        assert unchanged.total == 0
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.mul_(1.5 if "q_proj" in name else 1.0)
        moved = trained_drift(model, stored.get)
    assert moved is not None
    assert moved.by_kind["q_proj"] == pytest.approx(0.5, rel=1e-5)
    assert moved.by_kind["embed_tokens"] == 0
    assert 0 < moved.total < 0.5


def test_weights_that_are_stored_under_other_names_have_no_drift(model_folders: dict[str, Path]) -> None:
    model = loaded(model_folders["gemma"])
    with pytest.raises(LookupError, match=r"no tensor model\.embed_tokens\.weight of that shape"):
        trained_drift(model, lambda name: None)


def test_a_weight_is_held_against_its_original_in_its_own_dtype(model_folders: dict[str, Path]) -> None:
    model = loaded(model_folders["llama"]).to(torch.bfloat16)
    with StoredTensors(model_folders["llama"]) as stored:
        drift = trained_drift(model, stored.get)
    assert drift is not None
    assert drift.total == 0


@pytest.mark.parametrize("variant", [{}, {"rslora": True}, {"dora": True}])
@pytest.mark.parametrize("architecture", ["gemma", "llama"])
def test_adapters_count_as_merged(model_folders: dict[str, Path], architecture: str, variant: dict[str, Any]) -> None:
    base = loaded(model_folders[architecture])
    before = {name: weight.detach().clone() for name, weight in base.named_parameters()}
    model: Any = Lora(name="lora", r=4, **variant).adapt(base, Precision.fp32)
    assert adapter_drift(model).total == pytest.approx(0, abs=1e-6)
    shake(model)
    drift = adapter_drift(model)
    merged = copy.deepcopy(model).merge_and_unload()
    expected = trained_drift(merged, before.get)
    assert expected is not None
    assert drift.total == pytest.approx(expected.total, rel=1e-4)
    assert drift.by_kind == pytest.approx(expected.by_kind, rel=1e-4)
    assert drift.by_kind["q_proj"] > 0.01


def test_a_quantised_base_counts_as_what_it_stands_for(model_folders: dict[str, Path]) -> None:
    method = Lora(name="qlora", r=4, quantize=Quantization.nf4)
    base = loaded(model_folders["llama"], quantization=method.quantization(Precision.fp32))
    model: Any = method.adapt(base, Precision.fp32)
    shake(model)
    eye, changed, original = torch.eye(64), 0.0, 0.0
    with torch.no_grad():
        for block in model.base_model.model.model.layers:  # what the layers make of each unit vector
            layer = block.self_attn.q_proj
            before = layer.get_base_layer()(eye)
            changed += float((layer(eye) - before).square().sum())
            original += float(before.square().sum())
    assert adapter_drift(model).by_kind["q_proj"] == pytest.approx((changed / original) ** 0.5, rel=1e-3)


def shake(model: Any) -> None:
    """Give the adapters' second halves, which begin at zero, some weight."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
