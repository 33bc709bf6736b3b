"""Data: what is read, what is refused, how it is split."""

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from benchmarks import intents

from ftmatrix.data import Message, Pocket
from ftmatrix.data.banking77 import Banking77
from ftmatrix.data.dataset import cut_validation, folded, stratified_subset
from ftmatrix.data.files import CsvFolder, JsonlFolder
from ftmatrix.errors import ConfigError, DataError

GOOD = "text,category\nwhere is it,card\nwhere is it now,card\nhow do I pay,pay\nhow to pay,pay\n"


def folder(tmp_path: Path, **files: str | bytes) -> str:
    """A folder with the given files; `train` and `test` default to good CSV."""
    contents = {"train.csv": GOOD, "test.csv": "text,category\nit is where,card\npaying how,pay\n"}
    for name, content in (contents | {key.replace("_", ".", 1): value for key, value in files.items()}).items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"train_csv": "text,label\na,b\n"}, "no column 'category' among text, label; name it with data.label_column"),
        ({"train_csv": "message,category\na,b\n"}, "no column 'text' among message, category; name it with data.text_"),
        ({"train_csv": ""}, "no column 'text'"),
        ({"train_csv": "text,category\n"}, "the train split is empty"),
        ({"test_csv": "text,category\n"}, "the test split is empty"),
        ({"train_csv": "text,category\n ,card\n"}, "train, message 1: the text is empty"),
        ({"train_csv": "text,category\na, \n"}, "train, message 1: the label is empty"),
        ({"train_csv": "text,category\na,card\nb\n"}, "line 3: not 2 fields"),
        ({"train_csv": "text,category\na,b,card\n"}, "line 2: not 2 fields; quote commas"),
        ({"train_csv": 'text,category\n"a,card\n'}, "malformed CSV"),
        ({"train_csv": b"text,category\ncaf\xe9,card\n"}, "not UTF-8"),
        ({"train_csv": "text,category\na,card\nb,card\nc,card\n"}, "only the intent 'card' stands in train"),
        ({"test_csv": "text,category\na,card\nb,crad\n"}, "test holds 1 label(s) that train doesn't, such as 'crad'"),
        ({"validation_csv": "text,category\na,other\n"}, "validation holds 1 label(s)"),
        ({"train_csv": "text,category\na,(invalid)\n"}, "is reserved for wrong answers"),
    ],
)
def test_a_bad_csv_folder_is_refused_with_its_place(files: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        CsvFolder(name="csv", path=folder(tmp_path, **files)).load()
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.path=/no/such: no such folder"):
        CsvFolder(name="csv", path="/no/such").load()
    with pytest.raises(DataError, match=r"no train.csv"):
        CsvFolder(name="csv", path=str(tmp_path)).load()
    with pytest.raises(DataError, match=r"needs data.path=DIR"):
        CsvFolder(name="csv").load()


def test_other_column_names(tmp_path: Path) -> None:
    path = folder(tmp_path, train_csv=GOOD.replace("text,category", "q,a"), test_csv="q,a\nx,card\ny,pay\n")
    dataset = CsvFolder(name="csv", path=path, text_column="q", label_column="a").load()
    assert dataset.labels == ("card", "pay")


def test_jsonl_in_both_forms(tmp_path: Path) -> None:
    chat = {"role": "user", "content": "where is it"}, {"role": "assistant", "content": " card\n"}
    instructed = {"messages": [{"role": "system", "content": "Classify."}, *chat]}
    lines = [
        {"prompt": "how do I pay", "completion": " pay"},
        {"prompt": "paying", "completion": "pay"},
        {"messages": list(chat)},
        instructed,
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(line) for line in lines[:3]))
    raw = JsonlFolder(name="jsonl", path=str(tmp_path)).read()
    assert [message.label for message in raw.train] == ["pay", "pay", "card", "card"]
    assert raw.train[3].text == "Classify.\n\nwhere is it"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: not JSON"),
        ('{"prompt": "a"}', "needs texts 'prompt' and 'completion'"),
        ('{"prompt": 3, "completion": "a"}', "needs texts 'prompt' and 'completion'"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "'messages' must be an optional system"),
        ('["a", "b"]', "needs texts 'prompt' and 'completion'"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_bad_jsonl_is_refused_with_its_line(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(line)
    (tmp_path / "test.jsonl").write_text(line)
    with pytest.raises(DataError) as refused:
        JsonlFolder(name="jsonl", path=str(tmp_path)).load()
    assert said in str(refused.value)


def test_validation_is_cut_stratified_and_seeded() -> None:
    train = tuple(Message(f"m{i}", label) for label, count in {"a": 100, "b": 50, "c": 1}.items() for i in range(count))
    rest, validation = cut_validation(train, 0.1, seed=0)
    assert Counter(message.label for message in validation) == {"a": 10, "b": 5}
    assert Counter(message.label for message in rest)["c"] == 1
    assert set(map(id, rest)) | set(map(id, validation)) == set(map(id, train))
    assert cut_validation(train, 0.1, seed=0)[1] == validation
    assert cut_validation(train, 0.1, seed=1)[1] != validation


@pytest.mark.parametrize("size", [3, 7, 20, 150, 151, 500])
def test_a_subset_has_its_size_and_keeps_proportions(size: int) -> None:
    messages = tuple(
        Message(f"m{i}", label) for label, count in {"a": 100, "b": 50, "c": 1}.items() for i in range(count)
    )
    subset = stratified_subset(messages, size, seed=0)
    assert len(subset) == min(size, 151)
    counts = Counter(message.label for message in subset)
    assert set(counts) == {"a", "b", "c"}
    assert abs(counts["a"] - len(subset) * 100 / 151) <= 1.5
    assert subset == stratified_subset(messages, size, seed=0)


def test_duplicates_and_contradictions_are_reported(tmp_path: Path) -> None:
    train = GOOD + "WHERE is it?,pay\n" + "".join(f"filler {i},pay\n" for i in range(8))
    dataset = CsvFolder(
        name="csv",
        path=folder(tmp_path, train_csv=train, validation_csv="text,category\nhow to pay,pay\n", test_csv=GOOD),
    ).load()
    assert "1 training text(s) carry contradictory labels" in dataset.notes
    assert "1 validation text(s) also stand in train" in dataset.notes
    assert "4 test text(s) also stand in train or validation" in dataset.notes


def test_the_packaged_intents_keep_their_promises() -> None:
    source = Pocket(name="pocket")
    dataset = source.load()
    assert len(dataset.labels) >= 24
    for split, least in (("train", 60), ("validation", 15), ("test", 15)):
        counts = Counter(message.label for message in getattr(dataset, split))
        assert min(counts.values()) >= least
    assert not {folded(m.text) for m in dataset.test} & {folded(m.text) for m in (*dataset.train, *dataset.validation)}
    sizes = Counter(message.label for message in dataset.train)
    assert max(sizes.values()) >= 2 * min(sizes.values())


def test_the_packaged_files_are_what_their_phrases_make() -> None:
    import yaml

    from ftmatrix.data.authoring import build
    from ftmatrix.data.pocket import PACKAGED

    made = build(yaml.safe_load((PACKAGED / "phrases.yaml").read_text()))
    kept = Pocket(name="pocket").read()
    assert (tuple(made["train"]), tuple(made["validation"]), tuple(made["test"])) == (
        kept.train,
        kept.validation,
        kept.test,
    )


def test_no_phrase_of_the_packaged_intents_stands_in_two_splits() -> None:
    import yaml

    from ftmatrix.data.authoring import expansions
    from ftmatrix.data.pocket import PACKAGED

    phrases = yaml.safe_load((PACKAGED / "phrases.yaml").read_text())["intents"]
    for intent, families in phrases.items():
        readings = {
            split: {folded(reading) for family in families[split] for reading in expansions(family)}
            for split in ("train", "validation", "test")
        }
        for one, other in combinations(readings, 2):
            assert not readings[one] & readings[other], intent


def test_a_bag_of_words_finds_the_packaged_intents_neither_trivial_nor_noise() -> None:
    assert 0.65 < intents.baseline_accuracy(Pocket(name="pocket").load(), "test") < 0.93


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"limit": 1}, "data.limit=1: must be at least 2"),
        ({"validation_fraction": 0.9}, r"must lie in \(0, 0.5\]"),
        ({"common_intents": 0}, "must be at least 1"),
        ({"confusion_pair": ["a"]}, "name two different intents"),
        ({"confusion_pair": ["a", "a"]}, "name two different intents"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Pocket(name="pocket", **settings).check()


def test_an_unknown_confusion_pair_is_named() -> None:
    with pytest.raises(DataError, match="names 'card_arival', which is no intent"):
        Pocket(name="pocket", confusion_pair=["card_arival", "pin_change"]).load()


def test_banking77_from_a_folder_reads_like_any_csv(tmp_path: Path) -> None:
    dataset = Banking77(name="banking77", path=folder(tmp_path)).load()
    assert dataset.labels == ("card", "pay")


def test_banking77_from_the_hubs_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet

    import ftmatrix.data.banking77 as banking77
    from ftmatrix.machine.hub import Snapshot

    features = {"info": {"features": {"label": {"names": ["card", "pay"], "_type": "ClassLabel"}}}}
    table = pyarrow.table({"text": ["where is it", "it is", "how do I pay", "paying"], "label": [0, 0, 1, 1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    for split in ("train", "test"):
        (tmp_path / "default" / split).mkdir(parents=True)
        pyarrow.parquet.write_table(table, tmp_path / "default" / split / "0000.parquet")
    monkeypatch.setattr(banking77, "download", lambda *_, **__: Snapshot(tmp_path, "0123abc"))
    dataset = Banking77(name="banking77").load()
    assert dataset.labels == ("card", "pay")
    assert dataset.source == "PolyAI/banking77@0123abc"
