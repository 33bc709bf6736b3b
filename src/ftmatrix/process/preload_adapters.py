"""The adapter libraries, imported once for all cells where no GPU driver could mind."""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of optional kernels that cells don't need

import peft  # noqa: E402
import transformers.integrations.bitsandbytes  # noqa: E402

__all__ = ["peft", "transformers"]
