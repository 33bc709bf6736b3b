"""What is here, what each method can do with it, and whether it does so rightly: `ftmatrix doctor`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
