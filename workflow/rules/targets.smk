"""What people ask for by name: `snakemake shards`, `pairs`, `models`, `evaluations`, `tables`."""


rule shards:
    """The tars and manifest of every split that the study uses."""
    input:
        [f"results/shards/{split}/manifest.json" for split in study.used_splits()],


rule pairs:
    """The pairs of every trained run."""
    input:
        study.pairs(),


rule models:
    """The weights of the backbone and of every run."""
    input:
        study.pretrained(),
        study.models(),


rule evaluations:
    """The figures of every run on its targets."""
    input:
        study.evaluations(),


rule tables:
    """The tables and curves, without the page."""
    input:
        expand("results/{table}.{format}", table=study.config.tables, format=["csv", "md", "tex"]),
        expand("results/curves/{curve}.{format}", curve=study.config.curves, format=["csv", "svg"]),
