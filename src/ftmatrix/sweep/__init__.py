"""Many cells: what will be done with each, and the campaign that does it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
