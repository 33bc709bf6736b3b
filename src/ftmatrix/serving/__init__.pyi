from .intent_model import IntentModel as IntentModel
from .registry import register_best as register_best
