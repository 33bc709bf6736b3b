"""What GPUs and Apple's machines need, tried on a CPU: stand-ins, imagined cards, and real processes."""

import json
import math
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from test_methods import adapted
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor

from ftmatrix.arms import FullFineTuning, Lora, Method, Quantization
from ftmatrix.cell.meters import MemoryMeter
from ftmatrix.data import Message
from ftmatrix.errors import ConfigError, UnsupportedError
from ftmatrix.forecast import Forecaster, fits
from ftmatrix.forecast.forecaster import CUBLAS_BYTES
from ftmatrix.lm import (
    Collator,
    Compute,
    Evaluator,
    Framer,
    Group,
    Trainer,
    Training,
    adapter_drift,
    label_logits,
    trained_drift,
)
from ftmatrix.lm.answering import WithinLabels
from ftmatrix.machine import (
    VISIBLE,
    Accelerator,
    Card,
    Device,
    Precision,
    discovery,
    host,
    pick,
    seed_everything,
    share_of,
)
from ftmatrix.machine.discovery import KERNELS_BYTES
from ftmatrix.models import Model, StoredTensors
from ftmatrix.process import Leases, child, isolation, start_method, warm_up
from ftmatrix.process.isolation import forks_well
from ftmatrix.process.leases import NoCardError
from ftmatrix.records import Outcome
from ftmatrix.spec import Cell, ReadyCell, prepare
from ftmatrix.sweep import sweep

GIB = 2**30
QuickCell = Callable[..., Cell]
METHODS = [
    FullFineTuning(name="full"),
    Lora(name="lora"),
    Lora(name="qlora", quantize=Quantization.nf4),
    Lora(name="dora", dora=True),
]
CUDA = Accelerator(Device.cuda, "a card", 80 * GIB, has_bf16=True, free_bytes=79 * GIB, beside_bytes=KERNELS_BYTES)


@pytest.fixture
def as_before() -> Iterator[None]:
    """Puts torch's own switches back."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


def trainer_of(
    model: Any, framer: Framer, messages: tuple[Message, ...], cpu: Accelerator, group: Group | None = None
) -> Trainer:
    compute = Compute(Collator(framer.pad_id), cpu, Precision.fp32, group or Group())
    return Trainer(model, framer.frame(messages[:32]), compute, settings=Training(epochs=1), lr=1e-2, seed=0)


class NoFloat64(TorchDispatchMode):
    """Apple's GPUs have none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, torch.Tensor) and leaf.dtype is torch.float64 for leaf in tree_leaves(result)):
            raise TypeError(f"{func}: the MPS framework doesn't support float64")
        return result


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_training_and_drift_do_without_float64(
    method: Method, model_folders: dict[str, Path], framer: Framer, messages: tuple[Message, ...], cpu: Accelerator
) -> None:
    model = adapted(method, model_folders["gemma"])
    with NoFloat64():
        steps = list(trainer_of(model, framer, messages, cpu).steps())
        with StoredTensors(model_folders["gemma"]) as stored:
            drift = adapter_drift(model) if method.trains_adapters else trained_drift(model, stored.get)
    assert len(steps) == 2
    assert 0 < drift.total < 1
    with pytest.raises(TypeError, match="float64"), NoFloat64():
        torch.ones(2).sum(dtype=torch.float64)


def test_sums_of_parts_are_exact_enough(model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(METHODS[0], model_folders["llama"])
    with StoredTensors(model_folders["llama"]) as stored:
        before: dict[str, Any] = {name: stored.get(name) for name, _ in model.named_parameters()}
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 1e-3)
    moved = sum(float(((w.detach().double() - before[n].double()) ** 2).sum()) for n, w in model.named_parameters())
    norm = sum(float((w.double() ** 2).sum()) for w in before.values())
    monkeypatch.setattr("ftmatrix.lm.drift.ELEMENTS_AT_ONCE", 1000)
    assert trained_drift(model, before.get).total == pytest.approx(math.sqrt(moved / norm), rel=1e-6)


@pytest.mark.parametrize(
    ("system", "device", "forked", "method"),
    [
        ("linux", Device.cpu, True, "forkserver"),
        ("linux", Device.cuda, True, "forkserver"),
        ("linux", Device.cuda, False, "spawn"),
        ("linux", Device.xpu, False, "spawn"),
        ("linux", Device.cpu, False, "forkserver"),
        ("darwin", Device.mps, True, "spawn"),
        ("darwin", Device.cpu, True, "spawn"),
    ],
)
def test_cells_are_forked_where_that_is_safe(
    system: str, device: Device, forked: bool, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("ftmatrix.process.isolation.forks_well", lambda: forked)
    assert start_method(device) == method
    monkeypatch.setenv("FTMATRIX_START_METHOD", "spawn")
    assert start_method(device) == "spawn"
    monkeypatch.setenv("FTMATRIX_START_METHOD", "fork")
    with pytest.raises(ConfigError, match="FTMATRIX_START_METHOD=fork: must be forkserver or spawn"):
        warm_up([])


def test_a_forked_process_tells_whether_a_driver_was_started_before(
    adapters_preloaded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert forks_well()
    for library in ("cuda", "xpu"):
        told: list[bool] = []
        with monkeypatch.context() as patched:
            patched.setattr(f"torch.{library}._is_in_bad_fork", lambda: True)
            child.tell_of_fork(SimpleNamespace(send=told.append))  # type: ignore[arg-type]
        assert told == [False]


@pytest.mark.parametrize(
    ("devices", "method", "adapters"),
    [
        ((Device.cpu, Device.cpu), "lora", True),
        ((Device.cpu, Device.cpu), "full", False),
        ((Device.cpu, Device.cuda), "lora", False),
        ((Device.cuda,), "lora", False),
    ],
)
def test_what_asks_a_driver_is_preloaded_for_cpus_alone(
    devices: tuple[Device, ...], method: str, adapters: bool, quick_cell: QuickCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    preloaded: list[str] = []
    context = SimpleNamespace(set_forkserver_preload=preloaded.extend)
    monkeypatch.setattr("multiprocessing.get_context", lambda _: context)
    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", lambda: None)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    cell = ready(quick_cell(f"method={method}", "lr=1e-3"))
    warm_up([replace(cell, accelerator=replace(cell.accelerator, device=device)) for device in devices])
    assert ("ftmatrix.process.preload_adapters" in preloaded) is adapters
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    warm_up([cell])
    assert "PYTORCH_ALLOC_CONF" not in os.environ


def test_starting_the_server_loses_no_interrupt() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        with isolation._interrupts_held():
            signal.raise_signal(signal.SIGINT)
            assert heard == []
        assert heard == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_flash_attention_isnt_begun_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftmatrix.models.source.find_spec", lambda _: object())
    model = Model(name="pocket-1m", attention="flash_attention_2")
    assert "training.precision=mixed" in str(model.unsupported_on(CUDA, Precision.fp32))
    assert model.unsupported_on(CUDA, Precision.mixed) is None


def ready(cell: Cell, *cards: Card, device: Device = Device.cpu) -> ReadyCell:
    (found,) = prepare([cell])
    assert isinstance(found, ReadyCell)
    return replace(found, accelerator=replace(found.accelerator, device=device, cards=cards))


def test_cards_go_to_one_cell_each_the_freest_first(quick_cell: QuickCell) -> None:
    cards = (Card("0", 10 * GIB), Card("1", 70 * GIB), Card("2", 40 * GIB))
    one = ready(quick_cell("lr=1e-3"), *cards, device=Device.cuda)
    two = replace(one, cell=replace(one.cell, devices=2))
    on_cpu = ready(quick_cell("lr=1e-3"))
    leases = Leases([one, two, on_cpu], 1)
    assert leases.take(on_cpu) == ()
    first = leases.take(one)
    assert [card.name for card in first] == ["1"]
    assert [card.name for card in leases.take(two)] == ["2", "0"]
    assert not leases.has_room(one)
    assert leases.has_room(on_cpu)
    leases.give_back(one, first)
    assert not leases.has_room(two)
    assert leases.take(one) == first


def test_cells_share_cards_only_where_more_are_asked_for(quick_cell: QuickCell) -> None:
    one = ready(quick_cell("lr=1e-3"), Card("0", 70 * GIB), Card("1", 60 * GIB), device=Device.cuda)
    leases = Leases([one], 3)
    assert [leases.take(one)[0].name for _ in range(4)] == ["0", "1", "0", "1"]
    assert not leases.has_room(one)


def test_a_card_that_is_gone_gets_no_more_cells(quick_cell: QuickCell) -> None:
    one = ready(quick_cell("lr=1e-3"), Card("0", 70 * GIB), Card("1", 60 * GIB), device=Device.cuda)
    leases = Leases([one], 2, look=lambda _, name: name == "1")
    first, second = leases.take(one), leases.take(one)
    assert leases.lost(one, first) == ["0"]
    leases.give_back(one, first)
    assert not leases.has_room(one)
    assert leases.lost(one, second) == []
    leases.give_back(one, second)
    assert leases.take(one) == second
    leases._look = lambda *_: False
    assert leases.lost(one, second) == ["1"]
    assert leases.has_room(one)
    with pytest.raises(NoCardError, match="it needs 1 of device=cuda, 0 are left"):
        leases.take(one)


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has cells on the CPU believe that they have to be lent one of two cards."""
    here = replace(pick(Device.cpu), cards=(Card("7", 2 * GIB), Card("9", GIB)))
    monkeypatch.setitem(VISIBLE, Device.cpu, "FTMATRIX_SHOWN")
    monkeypatch.setattr("ftmatrix.spec.preparation.pick", lambda _: here)


def shown_to(cell: Cell, run_id: str, folder: Path) -> str:
    found = MlflowClient(tracking_uri=str(cell.tracking.uri)).download_artifacts(
        run_id, "environment.json", str(folder)
    )
    return str(json.loads(Path(found).read_text())["cards"])


def test_each_running_cell_sees_a_card_of_its_own(
    two_cards: None, quick_cell: QuickCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By processes that start anew: what a forked one knows, they have to be told."""
    monkeypatch.setenv("FTMATRIX_START_METHOD", "spawn")
    monkeypatch.setattr("ftmatrix.process.isolation.child.main", _main_on_a_card)
    cells = [quick_cell("method=lora", f"lr={lr}") for lr in ("1e-3", "2e-3")]
    rows = [row for row in sweep(cells, n_jobs=2) if row is not None]
    assert [row.outcome for row in rows] == [Outcome.COMPLETED] * 2
    shown = [shown_to(cell, row.run_id, tmp_path) for cell, row in zip(cells, rows, strict=True)]
    assert sorted(shown) == ["7", "9"]


def test_a_sweep_goes_on_without_a_card_that_disappears(
    two_cards: None, quick_cell: QuickCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ftmatrix.sweep.running.Leases", lambda cells, jobs: Leases(cells, jobs, lambda _, name: name != "7")
    )
    monkeypatch.setattr("ftmatrix.process.isolation.child.main", _crash_on_seven)
    cells = [quick_cell(f"lr={lr}") for lr in ("1e-3", "2e-3", "3e-3")]
    first, *others = [row for row in sweep(cells, n_jobs=1) if row is not None]
    assert first.outcome is Outcome.CRASHED
    assert "card 7 of device=cpu is gone" in str(first.reason)
    assert [row.outcome for row in others] == [Outcome.COMPLETED] * 2


def test_a_process_that_does_not_start_gives_its_card_back(
    two_cards: None, quick_cell: QuickCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_many(*_: Any) -> None:
        raise OSError("too many processes")

    monkeypatch.setattr("ftmatrix.process.scheduling.CellProcess", too_many)
    rows = sweep([quick_cell(f"lr={lr}") for lr in ("1e-3", "2e-3", "3e-3")], n_jobs=2)
    reasons = [str(row.reason) for row in rows if row is not None]
    assert reasons == ["its process didn't start: too many processes"] * 3


def _main_on_a_card(*given: Any) -> None:
    VISIBLE[Device.cpu] = "FTMATRIX_SHOWN"  # whose value the record of a cell's environment holds
    child.main(*given)


def _crash_on_seven(*given: Any) -> None:
    if given[-1] == {"FTMATRIX_SHOWN": "7"}:
        raise SystemExit(3)
    child.main(*given)


def test_names_of_cards_that_were_chosen_before_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ftmatrix.machine.discovery.ask_child",
        lambda *_: [CUDA, replace(CUDA, free_bytes=50 * GIB), replace(CUDA, name="an older card")],
    )
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [card.name for card in pick(Device.cuda).cards] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, GPU-b,GPU-c")
    there = pick(Device.cuda)
    assert there.cards == (Card("GPU-a", 79 * GIB), Card("GPU-b", 50 * GIB))
    assert discovery.visible(Device.cuda, ["GPU-b"]) == {"CUDA_VISIBLE_DEVICES": "GPU-b"}
    assert share_of(there, 2).free_bytes == 50 * GIB
    with pytest.raises(UnsupportedError, match="devices=3: 2 of device=cuda here"):
        share_of(there, 3)


def test_a_device_that_doesnt_answer_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftmatrix.machine.discovery.ANSWER_SECONDS", 0.01)
    with pytest.raises(UnsupportedError, match=r"device=cpu doesn't answer within 0\.01 s"):
        discovery.ask_child(Device.cpu)
    assert not discovery.is_there(Device.cuda, "0")


def test_a_gpu_is_asked_for_the_same_sums_each_time_and_fills_nothing(as_before: None) -> None:
    seed_everything(0, Device.cuda)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:put_ does not have a deterministic")
def test_what_has_no_such_kernel_runs_with_a_note(
    as_before: None, quick_cell: QuickCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftmatrix.cell import CellRun

    rehearse = Evaluator.rehearse

    def with_put(self: Evaluator, splits: Any) -> None:
        torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))  # has none on a CPU either
        rehearse(self, splits)

    monkeypatch.setattr(Evaluator, "rehearse", with_put)
    run = CellRun(ready(quick_cell("lr=1e-3")), lambda _: None)
    torch.use_deterministic_algorithms(True)
    result = run.run().result
    assert result.outcome is Outcome.COMPLETED
    assert "the same seed may give another result: put_ isn't deterministic on cpu" in result.notes


def test_no_gradient_outlives_the_training(
    model_folders: dict[str, Path], framer: Framer, messages: tuple[Message, ...], cpu: Accelerator
) -> None:
    class Copies(Group):
        has_copies = True

        def training(self, model: torch.nn.Module) -> torch.nn.Module:
            return model

        def synchronised(self, training: Any, is_last: bool) -> Any:
            return torch.enable_grad()

    model = adapted(METHODS[0], model_folders["gemma"])
    trainer = trainer_of(model, framer, messages, cpu, group=Copies())
    steps = trainer.steps()
    next(steps)
    assert any(weight.grad is not None for weight in model.parameters())
    list(steps)
    assert all(weight.grad is None for weight in model.parameters())


def test_cublas_is_forecast_on_cuda_alone(quick_cell: QuickCell, tmp_path: Path) -> None:
    cell = ready(quick_cell("lr=1e-3"))
    forecaster = Forecaster(tmp_path)
    sizes = {}
    for device in (Device.cuda, Device.mps):
        there = replace(cell, accelerator=replace(cell.accelerator, device=device))
        sizes[device] = forecaster.forecast(there).peak_bytes
    assert sizes[Device.cuda] - sizes[Device.mps] == CUBLAS_BYTES


def test_evaluation_dequantises_as_training_does(
    model_folders: dict[str, Path], framer: Framer, messages: tuple[Message, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(METHODS[2], model_folders["gemma"])
    batch = Collator(framer.pad_id)(framer.frame(messages[:4]))
    learned = label_logits(model, batch)[0].detach()

    def fused(*_: Any, **__: Any) -> None:
        raise AssertionError("a kernel for inference")

    monkeypatch.setattr("bitsandbytes.matmul_4bit", fused)
    model.eval()
    with torch.no_grad():
        assert torch.equal(label_logits(model, batch)[0], learned)


def test_apples_chips_have_their_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    answers = ["Apple M4 Pro\n", ""]
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout=answers.pop(0), stderr="")
    )
    monkeypatch.setattr("platform.processor", lambda: "arm")
    assert [host.processor_name() for _ in range(2)] == ["Apple M4 Pro", "arm"]


def test_decoding_within_labels_asks_the_device_once_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    followers = {(): [3, 5], (3,): [4], (5,): [6, 7]}
    ids = torch.tensor([[0, 1, 3], [0, 1, 5], [0, 1, 8]])
    scores = torch.randn(3, 10)
    each_row = PrefixConstrainedLogitsProcessor(lambda _, row: followers.get(tuple(row[2:].tolist()), [9]), 1)
    expected = each_row(ids, scores)
    asked: list[torch.Tensor] = []
    real = torch.Tensor.tolist

    def counted(tensor: torch.Tensor) -> Any:
        asked.append(tensor)
        return real(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    found = WithinLabels(followers, 2, 9)(ids, scores)  # type: ignore[arg-type]
    assert torch.equal(found, expected)
    assert len(asked) == 1


def test_what_a_gpus_own_context_takes_is_counted_once() -> None:
    assert fits(79 * GIB - KERNELS_BYTES, CUDA)
    assert not fits(79 * GIB - KERNELS_BYTES + 1, CUDA)


def test_apples_pool_counts_as_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"current_allocated_memory": 3 * GIB, "driver_allocated_memory": 5 * GIB}
    for name, count in taken.items():
        monkeypatch.setattr(f"torch.mps.{name}", lambda count=count: count)
    monkeypatch.setattr("torch.mps.empty_cache", lambda: None)
    meter = MemoryMeter(Accelerator(Device.mps, "Apple M4", 16 * GIB, has_bf16=True))
    with meter.phase("train"):
        pass
    (peak,) = meter.peaks
    assert (peak.peak_bytes, peak.reserved_bytes) == (3 * GIB, 5 * GIB)
    assert "sampled" in peak.counts
