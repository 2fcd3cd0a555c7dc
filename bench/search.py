"""Time of a search among a million embeddings of width 1024: python -m bench.search

The vectors are in a memory-mapped file, like an index. The first query may read them from the disk. The others read
them from memory, which bounds their time: 4.1 GB per query.

The search is compared with faiss, a library of nearest neighbours: with its exact search of the same array, and with
its approximate search in an inverted file of 1,024 lists, of which a query reads 16. The recall of the approximate
search depends on the distribution of the embeddings; random vectors, as here, are the worst case.
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
"""Vectors to find the centres of the lists from, enough to avoid faiss' warning."""


def timed(task: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that a task takes, and its result."""
    started = time.perf_counter()
    result = task()
    return time.perf_counter() - started, result


def inverted_file(index: np.ndarray) -> faiss.Index:
    """Return faiss' inverted file, which copies the vectors."""
    made = faiss.index_factory(WIDTH, f"IVF{LISTS},Flat", faiss.METRIC_INNER_PRODUCT)
    made.train(index[:TRAINED_ON])
    for first in range(0, len(index), BLOCK):
        made.add(index[first : first + BLOCK])
    made.nprobe = LISTS_READ
    return made


def measure(rows: int, count: int, folder: Path | None) -> float:
    """Print the times of a search, and return the median in seconds, without the first."""
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
