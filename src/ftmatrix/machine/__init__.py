"""What a cell runs on: processor, memory, devices, files, signals, and the hub that it may reach."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
