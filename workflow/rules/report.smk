"""The page: tables, comparisons, curves, metrics, logs and shards of a study -> results/report/index.html."""


rule report:
    """Write the page with tables, curves and data accounts, on which every run's answers can be seen and heard."""
    input:
        tables=expand("results/{table}.csv", table=study.config.tables),
        comparisons=expand("results/comparisons/{table}.csv", table=study.config.tables),
        curves=expand("results/curves/{curve}.csv", curve=study.config.curves),
        metrics=study.table_files(None, "metrics.json"),
        logs=study.page_files("training.parquet"),
        accounts=study.page_files("training.json"),
        summaries=study.page_summaries(),
        pools=[f"{folder}/summary.json" for folder in study.pool_folders()],
        maps=[f"{folder}/map.parquet" for folder in study.pool_folders()],
    output:
        # The folder, so that Snakemake's report holds the page's data and clips as well.
        folder=report(
            directory("results/report"),
            htmlindex="index.html",
            caption="../report/page.rst",
            category="Page",
            labels={"file": "index.html"},
        ),
        index="results/report/index.html",
    log:
        "logs/report/report.log",
    params:
        version=VERSIONS["report"],
        name=as_is(study.name),
        note=as_is(study.note),
        protocol=study.protocol,
        pools=study.pool_folders(),
        evaluations=[str(Path(path).parent) for path in study.table_files(None, "metrics.json")],
    shell:
        "python -m pipeline.stages.report"
        " --name={params.name:q}"
        " --note={params.note:q}"
        " --protocol={params.protocol}"
        " --tables {input.tables:q}"
        " --comparisons {input.comparisons:q}"
        " --curves {input.curves:q}"
        " --evaluations {params.evaluations:q}"
        " --logs {input.logs:q}"
        " --summaries {input.summaries:q}"
        " --pools {params.pools:q}"
        " --out={output.folder:q}"
        " 2> {log:q}"
