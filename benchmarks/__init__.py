"""Speed and memory, measured in one run each. `make bench` runs them all."""
