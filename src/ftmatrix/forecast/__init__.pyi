from .advice import advise as advise
from .advice import fits as fits
from .advice import phase_bytes as phase_bytes
from .advice import with_advice as with_advice
from .forecaster import Forecaster as Forecaster
