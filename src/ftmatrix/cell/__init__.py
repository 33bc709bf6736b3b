"""Runs one cell: load, train, score, judge its stability, keep what it leaves."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
