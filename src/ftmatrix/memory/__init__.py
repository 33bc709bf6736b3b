"""Peak memory of a cell, forecast from its configuration."""
