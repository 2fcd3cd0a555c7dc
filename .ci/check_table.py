"""Check the table that `make table1` wrote: twelve rows, every figure a percentage, fine-tuning better than none."""

import csv
import sys

FIGURES = [f"{direction}_{figure}" for direction in ("t2a", "a2t") for figure in ("R1", "R5", "R10", "mAP10")]
METHODS = ["vanilla", "finetune", "composed", "composed", "finetune_all_pairs", "concatenate"]

with open(sys.argv[1], newline="") as file:
    rows = list(csv.DictReader(file))
assert [(row["target"], row["method"]) for row in rows] == [(t, m) for t in ("clotho", "audiocaps") for m in METHODS], (
    rows
)
for row in rows:
    assert all(0 <= float(row[name]) <= 100 for name in FIGURES), row
    print(" ".join(f"{value:>10}" for value in row.values()))
for target in ("clotho", "audiocaps"):
    vanilla, finetune = (
        next(row for row in rows if (row["target"], row["method"]) == (target, method)) for method in METHODS[:2]
    )
    for direction in ("t2a", "a2t"):
        name = f"{direction}_R10"
        errors = [
            float(row[name]) * (100 - float(row[name])) / int(row["n_text" if direction == "t2a" else "n_audio"])
            for row in (vanilla, finetune)
        ]
        gain = float(finetune[name]) - float(vanilla[name])
        assert gain > 2 * sum(errors) ** 0.5, f"{target} {name}: finetune is {gain:.2f} above vanilla, not two errors"
print("the table is whole")
