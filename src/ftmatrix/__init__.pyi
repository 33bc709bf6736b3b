from .api import Report as Report
from .api import load as load
from .api import plan as plan
from .api import report as report
from .api import results as results
from .api import run as run
from .process.listening import Listener as Listener

__version__: str
