"""ftmatrix: a matrix of fine-tuning experiments, measured side by side."""
