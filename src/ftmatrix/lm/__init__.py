"""All that knows a causal language model: prompts, batches, training, answering, drift."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
