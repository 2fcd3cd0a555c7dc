"""How long a search takes among a million embeddings of width 1024: python -m bench.search

The vectors lie in a memory-mapped file, as an index does. The first query reads them from the disk unless the system
still holds them; the others read memory, which is what bounds them: 4.1 GB a query.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.evaluation.vectors import nearest, unit_rows

WIDTH = 1024
BLOCK = 50_000


def measure(rows: int, count: int, folder: Path | None) -> float:
    """Print what a search takes, and return the median of the searches after the first, in seconds."""
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        path = Path(directory) / "audio.npy"
        written = np.lib.format.open_memmap(path, "w+", np.float32, (rows, WIDTH))
        for first in range(0, rows, BLOCK):
            size = min(BLOCK, rows - first)
            written[first : first + size] = unit_rows(generator.standard_normal((size, WIDTH), np.float32))
        written.flush()
        del written
        index = np.load(path, mmap_mode="r")
        queries = unit_rows(generator.standard_normal((count + 1, WIDTH), np.float32))
        seconds, products = [], []
        for query in queries:
            started = time.perf_counter()
            nearest(index, query, 10)
            seconds.append(time.perf_counter() - started)
            started = time.perf_counter()
            index @ query
            products.append(time.perf_counter() - started)
    median = float(np.median(seconds[1:]))
    print(f"{rows:,} x {WIDTH} float32, top 10, {count} queries after the first")
    print(f"search          {median:8.3f} s (median; {min(seconds[1:]):.3f} to {max(seconds[1:]):.3f})")
    print(f"matrix product  {np.median(products[1:]):8.3f} s of it")
    print(f"first search    {seconds[0]:8.3f} s")
    return median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="(default: %(default)s)")
    parser.add_argument("--queries", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to write the vectors (default: the temporary folder)")
    args = parser.parse_args()
    measure(args.rows, args.queries, args.folder)


if __name__ == "__main__":
    main()
