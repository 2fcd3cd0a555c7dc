rule tabulate:
    """Write a table's rows as CSV, Markdown and LaTeX in the paper's arrangement."""
    input:
        metrics=table_files("metrics.json"),
        comparisons="results/comparisons/{table}.csv",
        code=code_of("tabulate"),
    output:
        csv="results/{table}.csv",
        markdown="results/{table}.md",
        tex="results/{table}.tex",
    log:
        "logs/tabulate/{table}.log",
    params:
        name=config["study"]["name"],
        note=config["study"]["note"],
        protocol=config["evaluation"]["protocol"],
        datasets=table_datasets,
        rows=table_rows("metrics.json"),
    shell:
        "python -m pipeline.stages.tabulate --study-name {params.name:q} --study-note {params.note:q}"
        " --protocol {params.protocol} --datasets {params.datasets} {params.rows:q} --comparisons {input.comparisons:q}"
        " --csv {output.csv:q} --markdown {output.markdown:q} --tex {output.tex:q} 2> {log:q}"


rule compare:
    """Compare a table's rows with their target's finetune row by a paired bootstrap over clips."""
    input:
        contributions=table_files("contributions.parquet"),
        code=code_of("compare"),
    output:
        csv="results/comparisons/{table}.csv",
    log:
        "logs/compare/{table}.log",
    params:
        protocol=config["evaluation"]["protocol"],
        datasets=table_datasets,
        rows=table_rows("contributions.parquet"),
    shell:
        "python -m pipeline.stages.compare --protocol {params.protocol} --datasets {params.datasets}"
        " {params.rows:q} --csv {output.csv:q} 2> {log:q}"
