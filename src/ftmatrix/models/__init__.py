"""Pretrained causal LMs: where they come from, in which formats, and how they are loaded."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
