"""The kinds of method that a method's YAML may name."""

from ftmatrix.arms.base import Method
from ftmatrix.arms.full import FullFineTuning
from ftmatrix.arms.lora import Lora

METHOD_SCHEMAS: dict[str, type[Method]] = {"full": FullFineTuning, "lora": Lora}
"""What `defaults: - /schema/method@_here_: NAME` of a method's YAML may name."""
