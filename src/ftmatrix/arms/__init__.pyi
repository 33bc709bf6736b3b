from .base import Method as Method
from .full import FullFineTuning as FullFineTuning
from .lora import Lora as Lora
from .lora import Quantization as Quantization
from .schemas import METHOD_SCHEMAS as METHOD_SCHEMAS
from .schemas import NAMED_METHODS as NAMED_METHODS
