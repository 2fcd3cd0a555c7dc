"""Check the output of `make table1`: twelve rows of percentages, and fine-tuning significantly better than vanilla."""

import csv
import sys
from pathlib import Path

FIGURES = [f"{direction}_{figure}" for direction in ("t2a", "a2t") for figure in ("R1", "R5", "R10", "mAP10")]
CHECKED = ["t2a_R10", "t2a_mAP10", "a2t_R10"]
"""Figures whose gain is large. That of a2t_mAP10 on AudioCaps has p = 0.02, so another processor could miss it."""
METHODS = ["vanilla", "finetune", "composed", "composed", "finetune_all_pairs", "concatenate"]
TARGETS = ["clotho", "audiocaps"]

results = Path(sys.argv[1])
with (results / "table1.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
found = [(row["target"], row["method"]) for row in rows]
if found != [(target, method) for target in TARGETS for method in METHODS]:
    sys.exit(f"the rows are {found}")
for row in rows:
    print(" ".join(f"{value:>9.9}" for value in row.values()))
    if not all(0 <= float(row[name]) <= 100 for name in FIGURES):
        sys.exit(f"a figure is no percentage: {row}")

with (results / "comparisons" / "table1.csv").open(newline="") as file:
    vanilla = {(row["target"], row["figure"]): row for row in csv.DictReader(file) if row["method"] == "vanilla"}
for target in TARGETS:
    for name in CHECKED:
        row = vanilla[target, name]
        print(f"{target} {name}: vanilla minus finetune is {row['difference']}, p = {row['p_holm']}")
        if float(row["difference"]) >= 0 or row["significant"] != "yes":
            sys.exit("fine-tuning is not significantly better than vanilla")
