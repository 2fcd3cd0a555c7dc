rule tabulate:
    """Write a table's rows as CSV and as LaTeX in the paper's arrangement."""
    input:
        metrics=table_metrics,
        code=code_of("tabulate"),
    output:
        csv="results/{table}.csv",
        tex="results/{table}.tex",
    log:
        "logs/tabulate/{table}.log",
    params:
        name=config["study"]["name"],
        note=config["study"]["note"],
        protocol=config["evaluation"]["protocol"],
        datasets=table_datasets,
        rows=table_rows,
    shell:
        "python -m pipeline.stages.tabulate --study-name {params.name:q} --study-note {params.note:q}"
        " --protocol {params.protocol} --datasets {params.datasets} {params.rows:q} --csv {output.csv:q} --tex {output.tex:q} 2> {log:q}"
