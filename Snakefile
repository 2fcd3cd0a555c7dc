"""From raw audio datasets to a trained audio-text model and a table of results.

`snakemake --cores all results/table1.tex` runs the study of config.yaml;
`--configfile experiments/paper.yaml` lays another study's values over it.
"""

from snakemake.utils import min_version

min_version("9.27")


configfile: "config.yaml"


# Used only with --sdm apptainer; Dockerfile says how it is built from the lock.
container: "pipeline.sif"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/checkpoints.smk"
include: "workflow/rules/datasets.smk"
include: "workflow/rules/shards.smk"
include: "workflow/rules/pairs.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/sweep.smk"


rule all:
    default_target: True
    input:
        expand("results/{table}.{format}", table=config["tables"], format=["csv", "md", "tex"]),
        expand("results/curves/{curve}.{format}", curve=config.get("curves", {}), format=["csv", "svg"]),
        "results/report/index.html",
