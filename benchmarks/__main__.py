"""`make bench`: every benchmark, in turn."""

from benchmarks import overhead

if __name__ == "__main__":
    overhead.main()
