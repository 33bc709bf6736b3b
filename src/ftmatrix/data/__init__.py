"""Labelled messages: where they come from, and what is checked before anything is trained on them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
