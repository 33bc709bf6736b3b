"""What a user can get wrong: one line with the value, the rule and the way out; nothing started, no run left open."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient

from ftmatrix.cli import run

HEADER = "text,category\n"
ROWS = "where is my card,a\nstill no card,a\nmy pin,b\nnew pin please,b\n"
GOOD = HEADER + ROWS


@dataclass(frozen=True)
class Wrong:
    """A command, and what its one line has to say."""

    words: str
    says: tuple[str, ...]


CONFIGURATION = [
    Wrong("lr=abc", ("lr: Value 'abc'", "Float")),
    Wrong("lr=0", ("lr=0: a learning rate must lie in (0, 1]",)),
    Wrong("lr=-1e-3", ("lr=-0.001: a learning rate must lie in (0, 1]",)),
    Wrong("lr=nan", ("lr=nan: a learning rate must lie in (0, 1]",)),
    Wrong("lr=inf", ("lr=inf: a learning rate must lie in (0, 1]",)),
    Wrong("lr=1e-3,5", ("lr=5: a learning rate must lie in (0, 1]",)),
    Wrong("seed=-1", ("seed=-1: must lie in [0, 2**32)",)),
    Wrong("seed=one", ("seed: Value 'one'", "Integer")),
    Wrong("devices=0", ("devices=0: must be at least 1",)),
    Wrong("devices=3", ("devices=3: must divide training.batch_size=16",)),
    Wrong(
        "devices=2 training.micro_batch_size=16",
        ("training.micro_batch_size=16: must divide", "2 devices", "8 messages"),
    ),
    Wrong("shard=true", ("shard=true: weights are split over several devices; set devices=2",)),
    Wrong("method=qlora devices=2 shard=true", ("shard=true with method=qlora: 4-bit weights can't be split",)),
    Wrong("threads=0", ("threads=0: must be at least 1, or null",)),
    Wrong("n_jobs=0", ("n_jobs=0: must be at least 1, or auto",)),
    Wrong("n_jobs=many", ("n_jobs=many: must be at least 1, or auto",)),
    Wrong("device=gpu", ("device: Invalid value 'gpu'", "cuda")),
    Wrong("study=a/b", ("study='a/b': use letters",)),
    Wrong("checkpoint_minutes=-1", ("checkpoint_minutes=-1: must be 0 (never) or above",)),
    Wrong("tracking.patience_minutes=-1", ("tracking.patience_minutes=-1: must be 0 or above",)),
    Wrong("device_memory=24GiB", ("only `ftmatrix plan` can imagine a device",)),
    Wrong("plan=true device_memory=lots", ("device_memory=lots: write a size as 24GiB",)),
    Wrong("training.epochs=0", ("training.epochs=0: must be at least 1",)),
    Wrong("training.batch_size=0", ("training.batch_size=0: must be at least 1",)),
    Wrong("training.micro_batch_size=3", ("training.micro_batch_size=3: must divide training.batch_size=16",)),
    Wrong("training.warmup_fraction=1", ("training.warmup_fraction=1: must lie in [0, 1)",)),
    Wrong("training.weight_decay=-1", ("training.weight_decay=-1: must be 0 or above",)),
    Wrong("training.max_grad_norm=0", ("training.max_grad_norm=0: must be above 0, or null",)),
    Wrong("training.precision=fp16", ("training.precision: Invalid value 'fp16'", "bf16")),
    Wrong("training.schedule=cosin", ("training.schedule: Invalid value 'cosin'", "cosine")),
    Wrong("training.epoch=2", ("training.epoch: no such setting; did you mean 'training.epochs'?",)),
    Wrong("evaluation.batch_size=0", ("evaluation.batch_size=0: must be at least 1",)),
    Wrong("framing.template=hello", ("framing.template", "{text}")),
    Wrong("framing.max_length=15", ("framing.max_length=15: must be at least 16 tokens",)),
    Wrong("data.limit=1", ("data.limit=1: must be at least 2, or null",)),
    Wrong("data.test_limit=0", ("data.test_limit=0: must be at least 2, or null",)),
    Wrong("data.validation_fraction=0.9", ("data.validation_fraction=0.9: must lie in (0, 0.5]",)),
    Wrong("data.common_intents=0", ("data.common_intents=0: must be at least 1",)),
    Wrong("data.confusion_pair=[a]", ("data.confusion_pair=['a']: name two different intents",)),
    Wrong("data=banking", ("data=banking: no such data; did you mean 'banking77'?",)),
    Wrong("method=lorra", ("method=lorra: no such method; did you mean 'lora'?",)),
    Wrong("method=lora method.r=0", ("method.r=0",)),
    Wrong("method=lora method.alpha=0", ("method.alpha=0",)),
    Wrong("method=lora method.dropout=1", ("method.dropout=1",)),
    Wrong("method=full method.r=8", ("method.r: not a setting of this method",)),
    Wrong("method=lora model.from_scratch=true", ("model.from_scratch=true with method=lora", "take method=full")),
    Wrong("model=gemma-270m", ("model=gemma-270m: no such model; did you mean 'gemma3-270m'?",)),
    Wrong("model=hub", ("model=hub needs model.hub_id=OWNER/NAME",)),
    Wrong("model=hub model.hub_id=gemma", ("model.hub_id=gemma: must be OWNER/NAME",)),
    Wrong("model=local", ("model=local needs model.path=DIR",)),
    Wrong("model.attention=flash", ("model.attention=flash: available: auto, sdpa",)),
    Wrong("experiment=pocke", ("experiment=pocke: no such study; did you mean 'pocket'?",)),
    Wrong("tracking.uri=foo://bar", ("tracking.uri=foo://bar: MLflow can't use it",)),
    Wrong("tracking.uri=http://127.0.0.1:9", ("no MLflow server answers there", "start it, or take another")),
    Wrong("+foo=1", ("+foo: nothing reads such a setting",)),
    Wrong("lr=[1", ("lr=[1",)),
    Wrong("reprot", ("reprot: no such command; did you mean 'report'?",)),
    Wrong("report nothing-here", ("nothing-here: no such study in",)),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One store for all: making one takes longer than a wrong command does."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    MlflowClient(tracking_uri=uri).create_experiment("ftmatrix", artifact_location=(folder / "artifacts").as_uri())
    yield uri
    runs = MlflowClient(tracking_uri=uri).search_runs(["1"], max_results=1000)
    assert {run.info.status for run in runs} <= {"FAILED", "FINISHED"}
    assert not [run for run in runs if run.data.tags.get("complete")]


@pytest.fixture
def here(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("COLUMNS", "400")
    return tmp_path


@pytest.mark.parametrize("wrong", CONFIGURATION, ids=lambda wrong: wrong.words)
def test_a_wrong_command_is_refused_before_anything(
    wrong: Wrong, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(wrong.words.split(" ")) == 2
    streams = capsys.readouterr()
    for words in wrong.says:
        assert words in streams.err
    assert streams.err.startswith("ftmatrix: ")
    assert streams.err.count("\n") == 1
    assert streams.out == ""
    assert not (here / ".ftmatrix" / "cells").exists()


FILES: dict[str, tuple[dict[str, str | bytes], tuple[str, ...]]] = {
    "no train file": ({"test.csv": GOOD}, ("no train.csv",)),
    "no test file": ({"train.csv": GOOD}, ("no test.csv",)),
    "an empty file": ({"train.csv": "", "test.csv": GOOD}, ("train.csv", "no column 'text'")),
    "a header alone": ({"train.csv": HEADER, "test.csv": GOOD}, ("train split is empty",)),
    "no header": ({"train.csv": ROWS, "test.csv": GOOD}, ("no column 'text' among where is my card, a",)),
    "another column": ({"train.csv": "text,label\nx,a\n", "test.csv": GOOD}, ("no column 'category'", "label_column")),
    "a short row": ({"train.csv": GOOD + "alone\n", "test.csv": GOOD}, ("line 6", "not 2 fields")),
    "a long row": ({"train.csv": GOOD + "a,b,c\n", "test.csv": GOOD}, ("line 6", "quote commas")),
    "an open quote": ({"train.csv": GOOD + '"open,a\n', "test.csv": GOOD}, ("malformed CSV",)),
    "Latin-1": ({"train.csv": GOOD.encode() + b"caf\xe9,a\n", "test.csv": GOOD}, ("not UTF-8", "save it as UTF-8")),
    "UTF-16": ({"train.csv": GOOD.encode("utf-16"), "test.csv": GOOD}, ("not UTF-8",)),
    "a huge field": ({"train.csv": GOOD + "x" * 1_100_000 + ",a\n", "test.csv": GOOD}, ("field larger than",)),
    "an empty text": ({"train.csv": GOOD + " ,a\n", "test.csv": GOOD}, ("message 5: the text is empty",)),
    "an empty label": ({"train.csv": GOOD + "hello,\n", "test.csv": GOOD}, ("message 5: the label is empty",)),
    "a reserved label": ({"train.csv": GOOD + "hello,(invalid)\n", "test.csv": GOOD}, ("reserved",)),
    "one intent": ({"train.csv": HEADER + "x,a\ny,a\n", "test.csv": HEADER + "z,a\n"}, ("only the intent 'a'",)),
    "an unseen label": ({"train.csv": GOOD, "test.csv": HEADER + "x,c\n"}, ("train doesn't, such as 'c'",)),
    "labels that read alike": (
        {"train.csv": GOOD + "x,a_b\ny,a b\nz,a_b\nw,a b\n", "test.csv": GOOD},
        ("both read 'a b'", "spaces_for_underscores=false"),
    ),
    "a label of nothing": ({"train.csv": GOOD + "x,_\ny,_\n", "test.csv": GOOD}, ("label '_'", "rename it")),
    "a label out of reach": (
        {"train.csv": GOOD + "x,<eos>\ny,<eos>\n", "test.csv": GOOD},
        ("label '<eos>': this tokenizer can't write it",),
    ),
    "no JSON": ({"train.jsonl": "{", "test.jsonl": "{}"}, ("line 1: not JSON",)),
    "deep JSON": ({"train.jsonl": "[" * 100_000, "test.jsonl": "{}"}, ("line 1: not JSON",)),
    "other keys": ({"train.jsonl": '{"text": "x"}', "test.jsonl": ""}, ("line 1: needs texts 'prompt'",)),
    "a chat of one": (
        {"train.jsonl": '{"messages": [{"role": "user", "content": "x"}]}', "test.jsonl": ""},
        ("line 1: 'messages' must be",),
    ),
    "a number for a text": ({"train.jsonl": '{"prompt": 1, "completion": "a"}', "test.jsonl": ""}, ("needs texts",)),
    "JSON in Latin-1": ({"train.jsonl": b'{"prompt": "caf\xe9", "completion": "a"}', "test.jsonl": ""}, ("not UTF-8",)),
}


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The lines in which a command's only cell is refused, beside its row in the table; nothing was started."""
    assert run(words) == 1
    streams = capsys.readouterr()
    assert streams.err == ""
    assert "Traceback" not in streams.out
    assert "start  " not in streams.out
    return "\n".join(line for line in streams.out.splitlines() if not line.startswith(" "))


@pytest.mark.parametrize("name", FILES)
def test_bad_data_is_a_row_with_its_reason(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, says = FILES[name]
    (here / "data").mkdir()
    for file, content in files.items():
        (here / "data" / file).write_bytes(content.encode() if isinstance(content, str) else content)
    kind = "jsonl" if any(file.endswith("jsonl") for file in files) else "csv"
    line = refused([f"data={kind}", "data.path=data"], capsys)
    for words in says:
        assert words in line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data=csv"], "data=csv needs data.path=DIR"),
        (["data=csv", "data.path=nowhere"], "data.path=nowhere: no such folder"),
        (["data.limit=4"], "data.limit=4: "),
        (["data.confusion_pair=[a,b]"], "data.confusion_pair names 'a', which is no intent of train"),
        (
            ["framing.template='Tell me what this customer wants: {text} That is:'", "framing.max_length=16"],
            "framing.max_length=16: beside the template and the longest label",
        ),
        (["device=cuda"], "cuda"),
        (["model.attention=flash_attention_2"], "model.attention=flash_attention_2"),
    ],
    ids=str,
)
def test_settings_that_the_data_or_the_device_refuse(
    words: list[str], says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(words, capsys)


def change_config(**changed: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changed))

    return change


def drop(*patterns: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink()

    return change


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50_000])


def scribble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no safetensors at all" * 100)


def pickle_instead(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (shutil.rmtree, "is no folder"),
    "no config": (drop("config.json"), "no config.json in"),
    "a broken config": (break_config, "config.json"),
    "an unknown architecture": (change_config(model_type="none_such"), "not a causal LM"),
    "an encoder": (change_config(model_type="t5", architectures=["T5EncoderModel"]), "not a causal LM"),
    "no tokenizer": (drop("tokenizer*"), "no tokenizer in"),
    "a broken tokenizer": (break_tokenizer, "tokenizer"),
    "no weights": (drop("*.safetensors"), "no safetensors in"),
    "a pickle": (pickle_instead, "pickled weights are never loaded"),
    "truncated weights": (truncate, "truncated"),
    "scribble for weights": (scribble, "not a safetensors file"),
    "fewer words than the tokenizer": (change_config(vocab_size=100), "vocab"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_bad_model_folder_is_a_row_with_its_reason(
    name: str, here: Path, model_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    change, says = MODELS[name]
    folder = shutil.copytree(model_folders["gemma"], here / "model")
    change(folder)
    assert says in refused(["model=local", f"model.path={folder}"], capsys)


class Hub(BaseHTTPRequestHandler):
    """Answers each repository with the failure that its name asks for."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if "owner/slow" in self.path:
            time.sleep(5)
        status, error = next(
            (answer for name, answer in ANSWERS.items() if f"owner/{name}" in self.path), (404, "RepoNotFound")
        )
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_request(self, *_: object) -> None:
        """Keep quiet."""


ANSWERS = {
    "unauthorised": (401, ""),
    "gated": (403, "GatedRepo"),
    "missing": (404, "RepoNotFound"),
    "revision": (404, "RevisionNotFound"),
    "broken": (500, ""),
    "slow": (503, ""),
}
SAID = {
    "unauthorised": "the hub refuses your credentials for owner/unauthorised",
    "gated": "owner/gated is gated; accept its licence on its hub page",
    "missing": "the hub has no model owner/missing",
    "revision": "owner/revision has no revision 'main'",
    "broken": "model owner/broken at revision main",
    "slow": "model owner/slow at revision main",
}


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_every_failure_of_a_hub_is_a_row_with_its_reason(hub: str, here: Path, store: str) -> None:
    names = ",".join(f"owner/{name}" for name in ANSWERS)
    secret = "hf_SecretTokenOfMine"
    done = subprocess.run(
        [sys.executable, "-c", "from ftmatrix.cli import main; main()", "model=hub", f"model.hub_id={names}"],
        cwd=here,
        env=os.environ | {"HF_ENDPOINT": hub, "HF_HUB_CACHE": str(here / "cache"), "HF_HUB_ETAG_TIMEOUT": "1",
                          "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_TOKEN": secret},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("model=hub")]
    assert len(lines) == len(ANSWERS)
    for said in SAID.values():
        assert sum(said in line for line in lines) == 1, (said, lines)
    assert all("model=local model.path=DIR" in line for line in lines)
    assert "Traceback" not in done.stdout + done.stderr
    assert "start  " not in done.stdout
    assert secret not in done.stdout + done.stderr
