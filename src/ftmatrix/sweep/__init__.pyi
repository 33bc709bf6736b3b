from .campaign import carry_out as carry_out
from .campaign import look_ahead as look_ahead
from .campaign import sweep as sweep
from .plan_table import plan_frame as plan_frame
from .planning import plan as plan
