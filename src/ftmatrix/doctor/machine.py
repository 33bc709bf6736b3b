"""What is here: devices, libraries, hub, disk and store, and what each method can do with them. Nothing is changed."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from ftmatrix.doctor.findings import Finding, State
from ftmatrix.doctor.subjects import POCKET, cells_of
from ftmatrix.errors import FtmatrixError
from ftmatrix.machine import VISIBLE, Accelerator, Device, Precision, host, pick
from ftmatrix.models import MODELS, cache_folder, folder_of
from ftmatrix.process import start_method
from ftmatrix.spec import Tracking, without_credentials
from ftmatrix.store import check_reachable
from ftmatrix.text import gibibytes

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "mlflow", "hydra-core")
EXTRAS = {"ray": "hydra/launcher=ray", "submitit": "Slurm", "flash_attn": "model.attention=flash_attention_2"}
LEAST_DISK = 2 * 2**30
"""Room for a model of a few hundred million parameters, its progress and its saved weights."""


def examine(work_dir: Path) -> list[Finding]:
    """What is here; `work_dir` is where cells will leave their records."""
    return [*_system(), *_devices(), *_methods(), *_models(), *_places(work_dir)]


def _system() -> Iterator[Finding]:
    yield Finding("system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}")
    free, memory = host.free_bytes(), host.memory_bytes()
    sizes = f"{gibibytes(free)} of {gibibytes(memory)} free" if free and memory else "memory unknown"
    yield Finding("processor", f"{host.processor_name()}, {host.usable_cores()} cores to use, {sizes}")
    found = {name: _version(name) for name in PACKAGES}
    missing = [name for name, number in found.items() if number is None]
    words = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    lacking = f"; missing: {', '.join(missing)}" if missing else ""
    yield Finding("libraries", words + lacking, State.OFF if missing else State.OK, dict(found))
    extras = [f"{name} ({use})" for name, use in EXTRAS.items() if find_spec(name)]
    yield Finding("extras", ", ".join(extras) or "none")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> Iterator[Finding]:
    """Every kind of device, and the one that `device=auto` takes."""
    first: Accelerator | None = None
    for device in (Device.cuda, Device.xpu, Device.mps, Device.cpu):
        try:
            found = pick(device)
        except FtmatrixError as error:
            here = "isn't available on this machine" not in str(error)  # there, and doesn't start
            yield Finding(
                f"device={device.value}", str(error) if here else "not here", State.OFF if here else State.NOTED
            )
            continue
        first = first or found
        yield Finding(f"device={device.value}", _described(found), State.OK)
    if first is not None:
        precision, reason = first.suitable(Precision.auto)
        words = f"{first.kind}, training.precision={precision.value} ({reason}); a cell's process starts by "
        yield Finding("by itself", words + start_method(first.device))


def _described(accelerator: Accelerator) -> str:
    cards = accelerator.cards
    sizes = f"{gibibytes(accelerator.free_bytes or 0)} of {gibibytes(accelerator.memory_bytes or 0)} free"
    if len(cards) > 1:
        sizes += f" ({', '.join(f'{card.name}: {gibibytes(card.free_bytes)}' for card in cards)})"
    named = f"{len(cards)} x {accelerator.name}" if len(cards) > 1 else accelerator.name
    more = []
    if accelerator.device is not Device.cpu:
        more.append("bfloat16 units" if accelerator.has_bf16 else "no bfloat16 units")
    if accelerator.device is Device.cuda:
        more.append(_driver())
    return ", ".join([named, sizes, *more])


def _driver() -> str:
    """The versions of the GPU's driver and of what torch was built for."""
    import torch

    words = [f"torch for CUDA {torch.version.cuda}" if torch.version.cuda else f"torch for ROCm {torch.version.hip}"]
    with suppress(OSError, subprocess.SubprocessError):
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
        words.insert(0, f"driver {done.stdout.split()[0]}")
    shown = os.environ.get(VISIBLE[Device.cuda])
    return ", ".join([*words, *([f"{VISIBLE[Device.cuda]}={shown}"] if shown else [])])


def _methods() -> Iterator[Finding]:
    with TemporaryDirectory() as folder:
        cells = cells_of(POCKET, Path(folder))
    for cell in cells:
        here = pick(cell.device)
        reason = cell.method.unsupported_on(here)
        found = reason or f"runs on {here.kind}"
        yield Finding(f"method={cell.method.name}", found, State.OFF if reason else State.OK)


def _models() -> Iterator[Finding]:
    from huggingface_hub import constants, get_token

    told = "offline" if constants.HF_HUB_OFFLINE else "logged in" if get_token() else "not logged in"
    yield Finding("hub", f"{told} ({constants.ENDPOINT.partition('://')[2]}), cache {constants.HF_HUB_CACHE}")
    for name, model in MODELS.items():
        here = (folder_of(name) / model.file).exists()
        yield Finding(f"model={name}", "here" if here else f"not here yet; `ftmatrix fetch {name}` gets it")


def _places(work_dir: Path) -> Iterator[Finding]:
    for name, folder in {"work_dir": work_dir, "cache": cache_folder()}.items():
        there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        if not os.access(there, os.W_OK):
            yield Finding(name, f"{folder}: can't be written; another one is taken with work_dir=DIR", State.OFF)
            continue
        free = shutil.disk_usage(there).free
        scarce = free < LEAST_DISK
        words = f"{folder}, {gibibytes(free)} free" + (f", less than {gibibytes(LEAST_DISK)}" if scarce else "")
        yield Finding(name, words, State.OFF if scarce else State.OK)
    uri = Tracking().store
    try:
        check_reachable(uri, create=True)
    except FtmatrixError as error:
        yield Finding("store", str(error), State.OFF)
    else:
        yield Finding("store", without_credentials(uri), State.OK)
