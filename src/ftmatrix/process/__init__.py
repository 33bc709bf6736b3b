"""Cells in processes of their own: started, followed, stopped; here, or as the jobs of an engine."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
