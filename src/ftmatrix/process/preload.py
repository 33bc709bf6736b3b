"""What the server that cells are forked from imports once, so that a cell starts in a fraction of a second."""

import transformers.generation
import transformers.models.auto.modeling_auto
import transformers.models.auto.tokenization_auto
import transformers.models.gemma3.modeling_gemma3

import ftmatrix.cell.artifacts
import ftmatrix.cell.run

__all__ = ["ftmatrix", "transformers"]
