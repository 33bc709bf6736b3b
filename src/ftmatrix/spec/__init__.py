"""What is asked for: Hydra ends here, in cells that are typed, checked, prepared and identified."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
