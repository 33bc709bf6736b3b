"""GGUF files: toy ones, made by the format's own writer, and what is refused of them."""

import threading
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from ftmatrix.errors import ModelError, NotFetchedError
from ftmatrix.models import Checkpoint, Model, gguf_conversion, load_model, load_tokenizer
from ftmatrix.models.gguf import GgufFile

WIDTH, INNER, LAYERS, HEADS = 64, 128, 2, 4
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FTMATRIX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def vocabulary() -> list[str]:
    """One token a byte, as byte-level BPE writes them, and an end token."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = dict(zip(plain, map(chr, plain), strict=True)) | {byte: chr(256 + at) for at, byte in enumerate(others)}
    return [*(letters[byte] for byte in range(256)), "<|endoftext|>", "<|pad|>", "ab", "cd"]


def write(
    path: Path, *, tokenizer: bool = True, architecture: str = "qwen2", parts: int = 1, unmerged: str | None = None
) -> dict[str, Any]:
    """Write a toy model, its matrices in Q8_0; the tensors dequantised, by their names in transformers.

    `unmerged` is a token more, to which no merges lead.
    """
    tokens = [*vocabulary(), *([unmerged] if unmerged else [])]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(tokens))
    if parts > 1:
        writer.add_uint16("split.count", parts)
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_types([*[1] * 256, 3, 3, *[1] * (len(tokens) - 258)])
        writer.add_token_merges(["a b", "c d"])
        writer.add_eos_token_id(256)
        writer.add_pad_token_id(257)
    draw = numpy.random.default_rng(0)
    shapes = {"token_embd.weight": (len(tokens), WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        for part, shape in {
            "attn_norm": (WIDTH,),
            "ffn_norm": (WIDTH,),
            **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (WIDTH, WIDTH)),
            **dict.fromkeys(("ffn_gate", "ffn_up"), (INNER, WIDTH)),
            "ffn_down": (WIDTH, INNER),
        }.items():
            shapes[f"blk.{layer}.{part}.weight"] = shape
            if part in ("attn_q", "attn_k", "attn_v"):
                shapes[f"blk.{layer}.{part}.bias"] = (WIDTH,)
    found: dict[str, Any] = {}
    for name, shape in shapes.items():
        values = (1.0 if "norm" in name else 0.0) + 0.2 * draw.standard_normal(shape).astype(numpy.float32)
        kept = values.astype(numpy.float32)
        if len(shape) == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            packed = gguf.quants.quantize(kept, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
            kept = gguf.quants.dequantize(packed, kind)
        else:
            writer.add_tensor(name, kept)
        found[theirs(name)] = torch.from_numpy(kept.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


def theirs(name: str) -> str:
    """A tensor's name in transformers."""
    *block, part, kind = name.split(".")
    return ".".join([*(["model.layers", block[1]] if block else []), NAMES[part], kind])


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as refused:
        Model(name="local", path=str(path)).locate()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_its_logits_are_those_of_its_tensors(tmp_path: Path) -> None:
    tensors = write(tmp_path / "toy.gguf")
    model = Model(name="local", path=str(tmp_path / "toy.gguf"))
    checkpoint = model.locate()
    loaded = load_model(checkpoint, dtype=torch.float32, device="cpu")
    config = Qwen2Config(
        vocab_size=len(vocabulary()),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
    )
    direct: Any = Qwen2ForCausalLM(config)
    missing, unexpected = direct.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) in ((["lm_head.weight"], []), ([], []))
    direct.tie_weights()
    ids = torch.tensor([[72, 101, 108, 108, 111, 256]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, direct.eval()(ids).logits, rtol=0, atol=1e-5)
    assert model.title == "toy"
    assert checkpoint.revision.startswith("GGUF Q8_0 ")
    assert checkpoint.quantized_file == "toy.gguf (Q8_0)"
    assert checkpoint.parameters == sum(tensor.numel() for tensor in tensors.values())
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer.decode(tokenizer("top up, please").input_ids) == "top up, please"


def test_a_folder_that_holds_one_is_that_model(tmp_path: Path) -> None:
    write(tmp_path / "toy.gguf")
    here = Model(name="local", path=str(tmp_path)).locate()
    assert here == Model(name="local", path=str(tmp_path / "toy.gguf")).locate()


def test_of_two_in_a_folder_one_has_to_be_named(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    assert "name one of them: a.gguf, b.gguf" in refusal(tmp_path)


def test_a_plan_needs_the_header_alone(tmp_path: Path, cache: Path) -> None:
    write(tmp_path / "toy.gguf")
    model = Model(name="local", path=str(tmp_path / "toy.gguf"))
    with pytest.raises(NotFetchedError, match="isn't converted yet"):
        model.locate(fetch=False)
    outline = model.architecture()
    assert outline is not None
    assert not list(cache.rglob("*.safetensors"))
    assert outline.parameters == model.locate().parameters
    assert model.locate(fetch=False).folder.name.endswith("float32-checked")


def test_four_at_once_convert_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "toy.gguf")
    calls: list[str] = []
    real = gguf_conversion._dequantised

    def counted(file: GgufFile, named: str) -> tuple[Any, Any]:
        calls.append(named)
        return real(file, named)

    monkeypatch.setattr(gguf_conversion, "_dequantised", counted)
    found: list[Checkpoint] = []
    workers = [
        threading.Thread(target=lambda: found.append(Model(name="local", path=str(tmp_path / "toy.gguf")).locate()))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(calls) == 1


def test_a_conversion_that_is_cut_off_leaves_nothing_half(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "toy.gguf")
    model = Model(name="local", path=str(tmp_path / "toy.gguf"))

    class Full:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "config.json").write_text("{}")
            raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(gguf_conversion, "_dequantised", lambda *_: (Full(),))
        with pytest.raises(OSError, match="no space left"):
            model.locate()
    assert not list(cache.rglob("config.json"))
    assert AutoModelForCausalLM.from_pretrained(model.locate().folder).num_parameters() > 0


def test_a_file_written_anew_is_another_model(tmp_path: Path) -> None:
    path = tmp_path / "toy.gguf"
    write(path)
    before = Model(name="local", path=str(path)).locate()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # a weight's last bit
    path.write_bytes(content)
    after = Model(name="local", path=str(path)).locate()
    assert (before.revision, before.folder) != (after.revision, after.folder)


def test_what_is_no_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<html>404</html>")
    assert "is no GGUF file" in refusal(tmp_path / "page.gguf")


def test_a_missing_file(tmp_path: Path) -> None:
    assert "is no file" in refusal(tmp_path / "none.gguf")


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_truncated_file(tmp_path: Path, share: float) -> None:
    path = tmp_path / "toy.gguf"
    write(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "truncated" in refusal(path)
    assert "download it again" in refusal(path)


def test_one_part_of_several(tmp_path: Path) -> None:
    write(tmp_path / "toy-00001-of-00003.gguf", parts=3)
    assert "one of 3 parts" in refusal(tmp_path / "toy-00001-of-00003.gguf")


def test_a_file_without_tokenizer(tmp_path: Path) -> None:
    write(tmp_path / "toy.gguf", tokenizer=False)
    assert "holds no tokenizer" in refusal(tmp_path / "toy.gguf")


def test_an_architecture_that_transformers_cannot_read(tmp_path: Path) -> None:
    write(tmp_path / "toy.gguf", architecture="rwkv6")
    assert "can't read a 'rwkv6' model" in refusal(tmp_path / "toy.gguf")


def test_a_tokenizer_that_is_not_the_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some versions of transformers read a tokenizer at other places, and without its merges, and say nothing."""
    write(tmp_path / "toy.gguf")
    other = load_tokenizer(Model(name="pocket-1m").locate())
    with monkeypatch.context() as patch:
        patch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: other)
        said = refusal(tmp_path / "toy.gguf")
    assert "reads the tokenizer of toy.gguf wrongly (token 0 is 'Ā' in the file and " in said
    write(tmp_path / "letters.gguf", unmerged="Ġcard")
    assert "wrongly ('card' is one token in the file and several here)" in refusal(tmp_path / "letters.gguf")
