"""What the cells of a study say: curves over rates, differences, intervals, claims; over rows from anywhere."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
