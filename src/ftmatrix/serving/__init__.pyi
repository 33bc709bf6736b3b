from .intent_model import IntentModel as IntentModel
from .kept import best_kept as best_kept
from .kept import load_kept as load_kept
from .kept import run_of as run_of
from .registry import register_best as register_best
