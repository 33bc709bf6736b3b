"""Model folders as people have them: each works, or is refused in a line before anything is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, LlamaForSequenceClassification

import ftmatrix.cell.artifacts
import ftmatrix.cell.loading
import ftmatrix.cell.run
from ftmatrix.machine import Rank
from ftmatrix.models import Checkpoint, settled_attention
from ftmatrix.process.child import _run
from ftmatrix.records import CellResult, Outcome, from_json
from ftmatrix.spec import Cell, ReadyCell, prepare
from ftmatrix.store import Store
from ftmatrix.sweep import sweep

QuickCell = Callable[..., Cell]

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SHAPE),
    "gpt-j": ("GPTJConfig", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8}),
    "gpt-neo": (
        "GPTNeoConfig",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    ),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "gemma-2": ("Gemma2Config", SHAPE | {"head_dim": 8}),
    "mamba": ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2}),
    "gpt-oss": ("GptOssConfig", SHAPE | EXPERTS | {"head_dim": 8}),
    "mixtral": ("MixtralConfig", SHAPE | EXPERTS),
    "gpt-2 of 64 positions": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Callable[[str], Path]:
    """Makes a folder with a tiny random model of a kind, once."""
    root = tmp_path_factory.mktemp("foreign")

    def make(name: str) -> Path:
        folder: Path = root / name
        if not folder.exists():
            kind, shape = CONFIGS[name]
            tokens = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
            config = getattr(transformers, kind)(vocab_size=len(tokenizer), **tokens, **shape)
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def llama(made: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(made("llama"), tmp_path / "llama"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", "sdpa"),
        ("gpt-j", "eager"),
        ("gpt-neo", "eager"),
        ("bloom", "eager"),
        ("gemma-2", "eager"),  # it caps attention's logits, which sdpa leaves out
        ("mamba", "eager"),
        ("gpt-oss", "eager"),
    ],
)
def test_attention_is_the_best_that_a_model_supports(name: str, expected: str, made: Callable[[str], Path]) -> None:
    checkpoint = Checkpoint(made(name), "", 0)
    assert settled_attention(checkpoint, "auto") == expected
    assert settled_attention(checkpoint, "flash_attention_2") == "flash_attention_2"


def test_folders_of_many_kinds_are_trained(made: Callable[[str], Path], llama: Path, quick_cell: QuickCell) -> None:
    pad_outside(llama)
    few = ("data.limit=40", "data.test_limit=20", "evaluation.forgetting=false")
    asked = {
        "gpt-j": made("gpt-j"),
        "mixtral": made("mixtral"),
        "gpt-2 of 64 positions": made("gpt-2 of 64 positions"),
        "llama": llama,
        "four-bits": four_bits(made("llama"), llama.parent / "four-bits"),
    }
    method = {"four-bits": "qlora", "gpt-2 of 64 positions": "full"}
    more = {"gpt-2 of 64 positions": ["evaluation.forgetting=true"]}
    cells = [
        quick_cell("model=local", f"model.path={path}", f"method={method.get(name, 'lora')}", *few, *more.get(name, ()))
        for name, path in asked.items()
    ]
    rows = {row.model: row for row in sweep(cells, n_jobs=1) if row is not None}
    assert {name: row.reason for name, row in rows.items()} == dict.fromkeys(asked)
    assert rows["gpt-j"].settings["model.attention"] == "eager"
    store = Store(str(cells[0].tracking.uri), cells[0].study, create=False)
    results = {name: store.result(row) for name, row in rows.items()}
    assert "framing.max_length=128 is bounded by the model's 64 positions" in results["gpt-2 of 64 positions"].notes
    assert results["gpt-2 of 64 positions"].forgetting is not None
    assert any("quantised before (bitsandbytes, 4 bits)" in note for note in results["four-bits"].notes)
    drift = results["mixtral"].drift
    assert drift is not None
    assert drift.by_kind["experts"] > 0


def pad_outside(folder: Path) -> None:
    """Add a pad token to the tokenizer and not to the model."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    tokenizer.save_pretrained(folder)


def four_bits(source: Path, folder: Path) -> Path:
    """The same model as bitsandbytes saves it."""
    asked = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=asked, device_map={"": "cpu"})
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def end_outside(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(folder)


def add_adapter(folder: Path) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).save_pretrained(str(folder))


def leave_an_adapter_alone(folder: Path) -> None:
    add_adapter(folder)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()


def make_a_classifier(folder: Path) -> None:
    LlamaForSequenceClassification(AutoConfig.from_pretrained(folder)).save_pretrained(folder)


def say_gptq(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))


def have_few_positions(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8}))


def nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "method", "outcome", "said"),
    [
        (end_outside, "full", Outcome.MISSING_MODEL, "but the model's vocabulary ends at"),
        (add_adapter, "full", Outcome.MISSING_MODEL, "holds a whole model and an adapter"),
        (leave_an_adapter_alone, "lora", Outcome.MISSING_MODEL, "merge it into its base first"),
        (make_a_classifier, "full", Outcome.MISSING_MODEL, "holds LlamaForSequenceClassification, which writes no"),
        (say_gptq, "qlora", Outcome.UNSUPPORTED, "already quantised by gptq; take the unquantised base"),
        (have_few_positions, "full", Outcome.MISSING_MODEL, "of the model's 8 positions the template and the longest"),
    ],
)
def test_what_is_no_such_model_is_refused_in_a_line(
    spoil: Callable[[Path], None], method: str, outcome: Outcome, said: str, llama: Path, quick_cell: QuickCell
) -> None:
    spoil(llama)
    check_refused(quick_cell("model=local", f"model.path={llama}", f"method={method}"), outcome, said)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_four_bits_are_for_qlora(
    method: str, made: Callable[[str], Path], tmp_path: Path, quick_cell: QuickCell
) -> None:
    folder = four_bits(made("llama"), tmp_path / "four-bits")
    cell = quick_cell("model=local", f"model.path={folder}", f"method={method}")
    check_refused(cell, Outcome.UNSUPPORTED, "already quantised by bitsandbytes, 4 bits; take the unquantised base, or")


def test_adapters_that_peft_has_not_are_unsupported(made: Callable[[str], Path], quick_cell: QuickCell) -> None:
    cell = quick_cell("model=local", f"model.path={made('mamba')}", "method=lora")
    check_refused(cell, Outcome.UNSUPPORTED, "method=lora: PEFT has no adapters for this model")


def check_refused(cell: Cell, outcome: Outcome, said: str) -> None:
    """The cell's row gives the reason in a line, and no process was started for it."""
    (row,) = sweep([cell], n_jobs=1)
    assert row is not None
    assert row.outcome is outcome
    assert row.reason is not None
    assert said in row.reason
    assert "\n" not in row.reason
    assert "seconds_setup" not in row.metrics


@pytest.fixture
def ready(quick_cell: QuickCell) -> ReadyCell:
    (found,) = prepare([quick_cell("method=lora", "data.limit=40", "data.test_limit=20", "save_model=true")])
    assert isinstance(found, ReadyCell)
    found.folder.mkdir(parents=True)
    return found


class Reporter:
    """Takes what a cell tells, and its record."""

    def __init__(self) -> None:
        self.log = self
        self.ended: CellResult | None = None

    def __call__(self, event: object) -> None: ...

    def flush(self) -> None: ...

    def end(self, result: CellResult) -> None:
        self.ended = result


def fail(*_: object, **__: object) -> Any:
    raise RuntimeError("a figure beside the result")


@pytest.mark.parametrize(
    ("place", "name", "said"),
    [
        (ftmatrix.cell.loading, "adapter_drift", "weight drift unknown (RuntimeError: a figure beside the result)"),
        (ftmatrix.cell.run, "general_text", "forgetting unknown (RuntimeError: a figure beside the result)"),
        (ftmatrix.cell.artifacts, "draw_confusion", "confusion.png unknown (RuntimeError: a figure beside the result)"),
    ],
)
def test_no_figure_beside_it_costs_a_cell_its_result(
    place: Any, name: str, said: str, ready: ReadyCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, name, fail)
    reporter: Any = Reporter()
    result = _run(ready, Rank(), reporter, lambda: False)
    assert (result.outcome, result.reason) == (Outcome.COMPLETED, None)
    assert said in result.notes
    assert reporter.ended == result
    assert from_json(CellResult, (ready.files / "result.json").read_text()).notes == result.notes
    assert (ready.files / "model" / "adapter_model.safetensors").exists()


def test_weights_that_were_not_saved_whole_are_told(ready: ReadyCell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ftmatrix.cell.artifacts, "parameters_in", lambda path: 10)
    reporter: Any = Reporter()
    result = _run(ready, Rank(), reporter, lambda: False)
    assert result.outcome is Outcome.MISSING_MODEL
    assert "save_model: 10 weights were written, of" in str(result.reason)
