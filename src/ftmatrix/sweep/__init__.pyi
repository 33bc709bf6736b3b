from .campaign import sweep as sweep
from .planning import plan as plan
