"""Models: what is refused before it is loaded, and what the hub's failures say."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file, save_file

from ftmatrix.errors import DataError, FtmatrixError, GatedError, ModelError, NotFetchedError
from ftmatrix.machine import Repository, download
from ftmatrix.models import PACKAGED, Model, build_model, load_model
from ftmatrix.spec import config_folder

POCKET = PACKAGED / "pocket-1m"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(POCKET, tmp_path / "model"))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as refused:
        Model(name="local", path=str(folder)).locate()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_packaged_model_is_located_with_its_size() -> None:
    checkpoint = Model(name="pocket-1m").locate()
    assert checkpoint.parameters == 1_181_536
    assert len(checkpoint.revision) == 40


def test_a_digest_follows_the_content_and_not_the_place(folder: Path) -> None:
    here = Model(name="local", path=str(folder)).locate()
    assert here.revision == Model(name="pocket-1m").locate().revision
    config = json.loads((folder / "config.json").read_text()) | {"rms_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps(config))
    assert Model(name="local", path=str(folder)).locate().revision != here.revision


def test_a_missing_folder(tmp_path: Path) -> None:
    assert "is no folder" in refusal(tmp_path / "none")


def test_a_folder_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder)


def test_a_folder_without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in refusal(folder)


def test_pickled_weights_are_never_loaded(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weights": [1.0]}))
    assert "pickled weights are never loaded" in refusal(folder)


@pytest.mark.parametrize("kept", [3, 100, 20_000, 2_000_000])
def test_truncated_weights(kept: int, folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    assert any(word in refusal(folder) for word in ("truncated", "not a safetensors file"))


def answered(kind: type[Exception], said: str) -> Exception:
    """A hub's refusal without the HTTP response that its class asks for."""
    error = kind.__new__(kind)
    Exception.__init__(error, said)
    return error


@pytest.mark.parametrize(
    ("error", "kind", "expected", "said"),
    [
        (
            answered(hub_errors.LocalEntryNotFoundError, "offline"),
            "model",
            ModelError,
            "neither in the cache nor reachable",
        ),
        (answered(hub_errors.LocalEntryNotFoundError, "offline"), "dataset", DataError, "data.path=DIR"),
        (answered(hub_errors.GatedRepoError, "403"), "model", GatedError, "accept its licence"),
        (answered(hub_errors.RepositoryNotFoundError, "404"), "model", ModelError, "the hub has no model"),
        (answered(hub_errors.RevisionNotFoundError, "404"), "model", ModelError, "no revision 'main'"),
        (answered(hub_errors.HfHubHTTPError, "500 Server Error"), "model", ModelError, "500 Server Error"),
        (RuntimeError("connection reset by peer"), "model", ModelError, "connection reset by peer"),
        (OSError("No space left on device"), "model", ModelError, "No space left on device"),
    ],
)
def test_a_hubs_failure_is_one_line_with_a_way_out(
    error: Exception, kind: str, expected: type[FtmatrixError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(expected) as refused:
        download(Repository("owner/name", kind=kind), "model=x", ("*.json",))  # type: ignore[arg-type]
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_with_a_gap_is_never_filled_with_random_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.other_proj.weight"] = tensors.pop("model.layers.0.self_attn.q_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = Model(name="local", path=str(folder)).locate()
    with pytest.raises(ModelError, match=r"missing or misshapen, such as .*q_proj"):
        load_model(checkpoint, dtype=torch.float32, device="cpu")


def test_scratch_is_the_same_architecture_with_other_weights() -> None:
    checkpoint = Model(name="pocket-1m").locate()
    torch.manual_seed(0)
    scratch: Any = build_model(checkpoint, dtype=torch.float32, device="cpu")
    pretrained: Any = load_model(checkpoint, dtype=torch.float32, device="cpu")
    assert [p.shape for p in scratch.parameters()] == [p.shape for p in pretrained.parameters()]
    assert not torch.equal(scratch.get_input_embeddings().weight, pretrained.get_input_embeddings().weight)


def test_a_change_anywhere_in_the_weights_is_another_revision(folder: Path) -> None:
    before = Model(name="local", path=str(folder)).locate().revision
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[len(weights) // 2 + 12_345] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert Model(name="local", path=str(folder)).locate().revision != before


PUBLISHED = {
    "gemma2-2b": 2_614_341_888,
    "gemma3-1b": 999_885_952,
    "gemma3-270m": 268_098_176,
    "gemma3-270m-q4": 268_098_176,
    "smollm2-135m-it-q4": 134_515_008,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "smollm2-1.7b": 1_711_376_384,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
}
"""Parameters as the models' pages state them, tied weights counted once."""


@pytest.mark.parametrize("name", [path.stem for path in sorted((config_folder() / "model").glob("*.yaml"))])
def test_every_hub_models_architecture_is_bundled(name: str, make_cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftmatrix.models.source.cached_config", lambda repository: None)
    needed = ["model.path=."] if name == "local" else ["model.hub_id=a/b"] if name == "hub" else []
    architecture = make_cell(f"model={name}", *needed).model.architecture()
    assert (architecture.parameters if architecture else None) == PUBLISHED.get(name)


def test_a_cached_config_goes_before_the_bundled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--google--gemma-3-270m"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    shutil.copytree(PACKAGED / "pocket-1m", repository / "snapshots" / "abc", ignore=shutil.ignore_patterns("*.saf*"))
    found = Model(name="gemma3-270m", hub_id="google/gemma-3-270m").architecture()
    assert found is not None
    assert found.folder == repository / "snapshots" / "abc"
    assert found.parameters == Model(name="pocket-1m").locate().parameters
    with pytest.raises(NotFetchedError, match="only a part of google/gemma-3-270m is in the cache"):
        Model(name="gemma3-270m", hub_id="google/gemma-3-270m").locate(fetch=False)
