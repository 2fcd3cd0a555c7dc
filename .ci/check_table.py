"""Check what `make table1` wrote: twelve rows of percentages, and fine-tuning beyond two standard errors of vanilla."""

import csv
import json
import sys
from pathlib import Path

FIGURES = [f"{direction}_{figure}" for direction in ("t2a", "a2t") for figure in ("R1", "R5", "R10", "mAP10")]
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


def evaluation(run: str, target: str) -> dict:
    return json.loads((results / "evaluations" / run / "seed0" / target / "metrics.json").read_text())


def standard_error(metrics: dict, name: str) -> float:
    """Of a bootstrap over clips, from its interval of 95 %."""
    low, high = metrics["intervals_95"]["paper"][name]
    return (high - low) / (2 * 1.96)


for target in TARGETS:
    vanilla, finetune = evaluation("vanilla", target), evaluation(f"{target}_finetune", target)
    for name in ("t2a_R10", "t2a_mAP10", "a2t_R10", "a2t_mAP10"):
        gain = finetune["protocols"]["paper"][name] - vanilla["protocols"]["paper"][name]
        error = (standard_error(vanilla, name) ** 2 + standard_error(finetune, name) ** 2) ** 0.5
        print(f"{target} {name}: finetune is {gain:.2f} above vanilla, {gain / error:.1f} standard errors")
        if gain <= 2 * error:
            sys.exit("that is not more than two")
