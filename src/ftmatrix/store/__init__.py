"""Where results go and come from: records on disk, on their way to MLflow, and MLflow itself."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
