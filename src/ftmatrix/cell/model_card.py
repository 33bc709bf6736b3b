"""The card beside saved weights: what they are, how good they were, and how they are asked."""

import json

from ftmatrix.lm import Framer
from ftmatrix.records import CellResult
from ftmatrix.spec import ReadyCell

FOUR_BIT_BASE = (
    "It was trained on a base in 4 bits (NF4). On a base that isn't quantised some answers differ: load the base as it "
    'was, with `quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", '
    "bnb_4bit_use_double_quant=True)`."
)


def model_card(ready: ReadyCell, result: CellResult, framer: Framer) -> str:
    """README.md of a saved adapter or model."""
    cell, framing, labels = ready.cell, ready.cell.framing, ready.dataset.labels
    kind = "adapter" if cell.method.trains_adapters else "model"
    spaces = ", its underscores as spaces" if framing.spaces_for_underscores else ""
    end = "the end token" if framing.end is None else json.dumps(framing.end)
    trained_on = f"{cell.training.epochs} epochs of {len(ready.dataset.train):,} messages of {cell.data.title}"
    parts = (
        f"# {cell.title}",
        f"A {kind} that tells the intent of a message, one of {len(labels)}. Made by ftmatrix: {cell.method.name} on "
        f"{_base(ready)}, {trained_on} (content {ready.dataset.digest[:12]}).",
        *([FOUR_BIT_BASE] if cell.method.quantizes else []),
        _scores(result),
        f"The prompt is {json.dumps(framing.template, ensure_ascii=False)} with the message in place of `{{text}}`, "
        f"and the answer a label{spaces}, closed by {end}: at most {framer.max_length} tokens in all. Labels: "
        f"{', '.join(f'`{label}`' for label in labels)}.",
        f"```python\n{_program(ready, framer)}\n```",
    )
    return "\n\n".join(parts) + "\n"


def _base(ready: ReadyCell) -> str:
    model, revision = ready.cell.model, ready.checkpoint.revision
    source = model.hub_id or model.title
    return f"{source} (revision {revision})"


def _scores(result: CellResult) -> str:
    rows = [
        f"| {found.split} | {found.messages:,} | {found.accuracy:.1%} | {found.accuracy_constrained:.1%} "
        f"| {found.macro_f1:.1%} | {found.invalid_rate:.1%} |"
        for found in (result.validation, result.test)
        if found is not None
    ]
    return "\n".join(
        [
            "| split | messages | accuracy | within the label set | macro-F1 | invalid answers |",
            "|---|---:|---:|---:|---:|---:|",
            *rows,
        ]
    )


def _program(ready: ReadyCell, framer: Framer) -> str:
    """Lines of Python that answer a message, in the folder of the card."""
    model = ready.cell.model
    load = 'AutoModelForCausalLM.from_pretrained(".")'
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    if ready.cell.method.trains_adapters:
        if model.hub_id:
            base = f"{model.hub_id!r}, revision={ready.checkpoint.revision!r}"
        else:
            lines.append("from ftmatrix.models.source import Model")
            named = f"name={model.name!r}" + (f", path={model.path!r}" if model.path else "")
            base = f"Model({named}).locate().folder"
        lines.append("from peft import PeftModel")
        load = f'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base}), ".")'
    return "\n".join(
        [
            *lines,
            "",
            'tokenizer = AutoTokenizer.from_pretrained(".")',
            f"model = {load}",
            f"prompt = {ready.cell.framing.template!r}.replace('{{text}}', 'My card has not arrived yet.')",
            'ids = tokenizer(prompt, return_tensors="pt")["input_ids"]',
            f"settings = dict(do_sample=False, max_new_tokens={framer.longest_label}, eos_token_id={framer.eos_id})",
            "answer = model.generate(input_ids=ids, **settings)",
            "print(tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True).strip())",
        ]
    )
