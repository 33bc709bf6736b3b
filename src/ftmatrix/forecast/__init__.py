"""Peak memory before the run, and what to do where it doesn't fit."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
