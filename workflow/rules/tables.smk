rule tabulate:
    """Write a table's rows as CSV, Markdown and LaTeX in the paper's arrangement."""
    input:
        metrics=table_files("metrics.json"),
        comparisons="results/comparisons/{table}.csv",
        published=published_figures,
        code=code_of("tabulate"),
    output:
        csv=report(
            "results/{table}.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}", "format": "CSV"},
        ),
        markdown="results/{table}.md",
        tex=report(
            "results/{table}.tex",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}", "format": "LaTeX"},
        ),
    log:
        "logs/tabulate/{table}.log",
    params:
        name=config["study"]["name"],
        note=config["study"]["note"],
        protocol=config["evaluation"]["protocol"],
        datasets=table_datasets,
        rows=table_rows("metrics.json"),
        published=published_flags,
    shell:
        "python -m pipeline.stages.tabulate --study-name {params.name:q} --study-note {params.note:q}"
        " --protocol {params.protocol} --datasets {params.datasets} {params.rows:q} --comparisons {input.comparisons:q}"
        " {params.published:q}"
        " --csv {output.csv:q} --markdown {output.markdown:q} --tex {output.tex:q} 2> {log:q}"


rule compare:
    """Compare a table's rows with their target's finetune row by a paired bootstrap over clips."""
    input:
        contributions=table_files("contributions.parquet"),
        code=code_of("compare"),
    output:
        csv=report(
            "results/comparisons/{table}.csv",
            caption="../report/comparisons.rst",
            category="Differences from finetune",
            labels={"table": "{table}"},
        ),
    log:
        "logs/compare/{table}.log",
    params:
        protocol=config["evaluation"]["protocol"],
        datasets=table_datasets,
        rows=table_rows("contributions.parquet"),
    shell:
        "python -m pipeline.stages.compare --protocol {params.protocol} --datasets {params.datasets}"
        " {params.rows:q} --csv {output.csv:q} 2> {log:q}"


rule draw_curves:
    """Draw R@1 against the amount of training data, every point with its interval."""
    input:
        files=curve_files,
        code=code_of("draw_curves"),
    output:
        csv="results/curves/{curve}.csv",
        svg=report(
            "results/curves/{curve}.svg",
            caption="../report/curves.rst",
            category="Amount of data",
            labels={"curve": "{curve}"},
        ),
    log:
        "logs/draw_curves/{curve}.log",
    params:
        protocol=config["evaluation"]["protocol"],
        against=curve_axis,
        points=curve_points,
    shell:
        "python -m pipeline.stages.draw_curves --protocol {params.protocol} --against {params.against}"
        " {params.points:q} --csv {output.csv:q} --svg {output.svg:q} 2> {log:q}"
