"""Fine-tuning methods. Each is a config dataclass that is its own strategy; QLoRA is LoRA with a quantised base."""

from ftmatrix.methods.base import Method as Method
from ftmatrix.methods.full import FullFineTuning as FullFineTuning
from ftmatrix.methods.lora import Lora as Lora
from ftmatrix.methods.lora import Quantization as Quantization

SCHEMAS: dict[str, type[Method]] = {"full": FullFineTuning, "lora": Lora}
"""What `defaults: - /schema/method@_here_: NAME` of a method's YAML may name."""
