rule report:
    """Write the page with tables, curves and data accounts, in which every run's answers can be seen and heard."""
    input:
        tables=expand("results/{table}.csv", table=config["tables"]),
        comparisons=expand("results/comparisons/{table}.csv", table=config["tables"]),
        curves=expand("results/curves/{curve}.csv", curve=config.get("curves", {})),
        metrics=study_metrics,
        logs=study_logs,
        summaries=study_summaries,
        templates=["pipeline/results/page/page.html", "pipeline/results/page/page.css", "pipeline/results/page/page.js"],
        code=code_of("report"),
    output:
        # The folder, so that the report holds the browser's data and the clips as well.
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
        name=config["study"]["name"],
        note=config["study"]["note"],
        protocol=config["evaluation"]["protocol"],
        evaluations=parent_folders,
    shell:
        "python -m pipeline.stages.report --name {params.name:q} --note {params.note:q} --protocol {params.protocol}"
        " --tables {input.tables:q} --comparisons {input.comparisons:q}"
        " --curves {input.curves:q} --evaluations {params.evaluations:q} --logs {input.logs:q}"
        " --summaries {input.summaries:q} --out {output.folder:q} 2> {log:q}"
