"""The adapter libraries, imported once for all cells where no GPU driver could mind."""

import peft
import transformers.integrations.bitsandbytes

__all__ = ["peft", "transformers"]
