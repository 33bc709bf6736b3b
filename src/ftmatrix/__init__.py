"""ftmatrix: a matrix of fine-tuning experiments, measured side by side."""

from importlib.metadata import version

import lazy_loader

__version__ = version("ftmatrix")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
