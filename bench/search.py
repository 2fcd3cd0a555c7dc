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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="(default: %(default)s)")
    parser.add_argument("--queries", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to write the vectors (default: the temporary folder)")
    args = parser.parse_args()
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "audio.npy"
        written = np.lib.format.open_memmap(path, "w+", np.float32, (args.rows, WIDTH))
        for first in range(0, args.rows, BLOCK):
            size = min(BLOCK, args.rows - first)
            written[first : first + size] = unit_rows(generator.standard_normal((size, WIDTH), np.float32))
        written.flush()
        del written
        index = np.load(path, mmap_mode="r")
        queries = unit_rows(generator.standard_normal((args.queries + 1, WIDTH), np.float32))
        seconds, products = [], []
        for query in queries:
            started = time.perf_counter()
            nearest(index, query, 10)
            seconds.append(time.perf_counter() - started)
            started = time.perf_counter()
            index @ query
            products.append(time.perf_counter() - started)
    print(f"{args.rows:,} x {WIDTH} float32, top 10, {args.queries} queries after the first")
    print(f"search          {np.median(seconds[1:]):8.3f} s (median; {min(seconds[1:]):.3f} to {max(seconds[1:]):.3f})")
    print(f"matrix product  {np.median(products[1:]):8.3f} s of it")
    print(f"first search    {seconds[0]:8.3f} s")


if __name__ == "__main__":
    main()
