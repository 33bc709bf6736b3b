"""`make bench`: every benchmark in turn, or those that ARGS names, with settings such as rounds=3."""

import sys
from importlib import import_module

from ftmatrix.errors import nearest

NAMES = ("overhead", "statistics", "memory", "kills", "training", "evaluation", "growth", "jobs")

if __name__ == "__main__":
    chosen = [word for word in sys.argv[1:] if "=" not in word] or NAMES
    for name in chosen:
        if name not in NAMES:
            sys.exit(f"{name}: no such benchmark; {nearest(name, NAMES)}")
    for name in chosen:
        import_module(f"benchmarks.{name}").main()
