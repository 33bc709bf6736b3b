"""What is compared: methods of fine-tuning. Each is a config dataclass that is its own strategy."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
