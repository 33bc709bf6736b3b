"""A fine-tuned cell that answers messages, in MLflow's model registry."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
