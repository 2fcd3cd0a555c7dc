"""How long a search takes among a million embeddings of width 1024: python -m bench.search

The vectors lie in a memory-mapped file, as an index does. The first query reads them from the disk unless the system
still holds them; the others read memory, which is what bounds them: 4.1 GB a query.

Beside it what faiss, a library of nearest neighbours, takes for the same answers (its exact search of the same array),
and for others: an inverted file of 1,024 lists, of which it reads 16, is made first and answers approximately. How
often its answers are the nearest depends on how embeddings lie; these vectors are random, the worst case.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import faiss
import numpy as np

from pipeline.evaluation.vectors import nearest, unit_rows

T = TypeVar("T")

WIDTH = 1024
BLOCK = 50_000
LISTS, LISTS_READ = 1024, 16
TRAINED_ON = 40 * LISTS
"""Vectors that the lists' centres are found from: one more than faiss warns of."""


def timed(task: Callable[[], T]) -> tuple[float, T]:
    """Seconds that a task takes, and what it returns."""
    started = time.perf_counter()
    result = task()
    return time.perf_counter() - started, result


def inverted_file(index: np.ndarray) -> faiss.Index:
    """faiss' inverted file of the vectors, which it copies."""
    made = faiss.index_factory(WIDTH, f"IVF{LISTS},Flat", faiss.METRIC_INNER_PRODUCT)
    made.train(index[:TRAINED_ON])
    for first in range(0, len(index), BLOCK):
        made.add(index[first : first + BLOCK])
    made.nprobe = LISTS_READ
    return made


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
        building, lists = timed(lambda: inverted_file(index))
        seconds: dict[str, list[float]] = {"search": [], "matrix product": [], "faiss, exact": [], "faiss, lists": []}
        same = 0
        for query in queries:
            taken = {
                "search": timed(lambda query=query: nearest(index, query, 10)),
                "matrix product": timed(lambda query=query: index @ query),
                "faiss, exact": timed(
                    lambda query=query: faiss.knn(query[None], index, 10, faiss.METRIC_INNER_PRODUCT)
                ),
                "faiss, lists": timed(lambda query=query: lists.search(query[None], 10)),
            }
            for name, (one, _) in taken.items():
                seconds[name].append(one)
            same += len(np.intersect1d(taken["search"][1][0], taken["faiss, lists"][1][1]))
    print(f"{rows:,} x {WIDTH} float32, top 10, {count} queries after the first")
    for name, all_of_them in seconds.items():
        later = all_of_them[1:]
        print(f"{name:14} {np.median(later):8.3f} s (median; {min(later):.3f} to {max(later):.3f})")
    print(f"first search   {seconds['search'][0]:8.3f} s")
    share = same / len(queries) / 10
    print(f"faiss' lists were made in {building:.1f} s; {LISTS_READ} of {LISTS} hold {share:.0%} of the nearest")
    return float(np.median(seconds["search"][1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="(default: %(default)s)")
    parser.add_argument("--queries", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to write the vectors (default: the temporary folder)")
    args = parser.parse_args()
    measure(args.rows, args.queries, args.folder)


if __name__ == "__main__":
    main()
