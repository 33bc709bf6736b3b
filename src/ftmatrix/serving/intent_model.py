"""A fine-tuned cell as a model that MLflow serves: messages in, intents of its label set out."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from ftmatrix.arms import FullFineTuning, Lora, Method, Quantization
from ftmatrix.lm import Collator, Compute, Evaluating, Evaluator, Framer, Framing
from ftmatrix.machine import Device, Precision, pick
from ftmatrix.models import Checkpoint, Model, limits_of, load_model, load_tokenizer
from ftmatrix.records import from_json

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow's, at its own classes
    from mlflow.pyfunc.model import PythonModel

FACTS, WEIGHTS = "cell.json", "model"
"""In the folder of a served cell: what it was, and its adapter or its whole model with the tokenizer."""


@dataclass(frozen=True)
class ServedCell:
    """What has to be known of a cell to answer as it did. `base` is the model under an adapter (None: no adapter)."""

    labels: tuple[str, ...]
    template: str
    spaces_for_underscores: bool
    max_length: int
    precision: str
    base: dict[str, Any] | None = None
    quantize: str = Quantization.none.value
    end: str | None = None

    @property
    def framing(self) -> Framing:
        """How messages become prompts."""
        return Framing(self.template, self.spaces_for_underscores, self.max_length, self.end)

    @property
    def method(self) -> Method:
        """How the weights are to be loaded."""
        return (
            FullFineTuning(name="full")
            if self.base is None
            else Lora(name="lora", quantize=Quantization(self.quantize))
        )


class IntentModel(PythonModel):
    """Answers with decoding restricted to the label set, on whatever device there is."""

    def load_context(self, context: Any) -> None:
        """What MLflow calls before the first message; see `load`."""
        self.load(Path(context.artifacts["cell"]))

    def load(self, folder: Path) -> None:
        """Load weights and tokenizer of a served cell's folder.

        Raises:
            ModelError: the base model isn't here and can't be fetched.
        """
        cell = from_json(ServedCell, (folder / FACTS).read_text(encoding="utf-8"))
        own = Checkpoint(folder / WEIGHTS, "", 0)
        source = own if cell.base is None else Model(**cell.base).locate()
        accelerator, precision = pick(Device.auto), Precision(cell.precision)
        model: Any = load_model(
            source,
            dtype=cell.method.weights_dtype(precision),
            device=accelerator.kind,
            quantization=cell.method.quantization(precision),
            attention=str((cell.base or {}).get("attention", "auto")),
        )
        if isinstance(cell.method, Lora):
            model = cell.method.restore(model, folder / WEIGHTS, precision)
        framer = Framer(cell.framing, load_tokenizer(own), cell.labels, limits_of(source))
        self.evaluator = Evaluator(
            model, framer, Compute(Collator(framer.pad_id), accelerator, precision), settings=Evaluating()
        )

    @torch.no_grad()
    def predict(self, model_input: list[str]) -> list[str]:  # type: ignore[override]
        """The intent of each message.

        Raises:
            MlflowException: there is no message, or a blank one; MLflow's server answers 400.
        """
        if not model_input:
            raise MlflowException("inputs: there is no message", error_code=INVALID_PARAMETER_VALUE)
        if empty := [index for index, message in enumerate(model_input) if not message.strip()]:
            raise MlflowException(
                f"inputs[{empty[0]}]: the message is empty; give texts, as training had them",
                error_code=INVALID_PARAMETER_VALUE,
            )
        prompts = self.evaluator.framer.prompts(model_input)
        return self.evaluator.choose([tuple(prompt) for prompt in prompts])
