"""Tables, comparisons and curves.

compare       contributions of a table's rows -> results/comparisons/{table}.csv
compare_with  the same, with another method   -> results/comparisons/with_{method}/{table}.csv
tabulate      metrics of a table's rows       -> results/{table}.csv, .md, .tex
draw_curves   pairs and contributions         -> results/curves/{curve}.csv, .svg
"""


rule compare:
    """Compare a table's rows with their target's finetune row by a paired bootstrap over clips."""
    input:
        contributions=ask(study.table_files, name="contributions.parquet"),
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
        version=VERSIONS["compare"],
        protocol=study.protocol,
        datasets=ask(study.table_datasets),
        rows=ask(study.table_rows, name="contributions.parquet"),
        baseline="finetune",
    shell:
        "python -m pipeline.stages.compare"
        " --baseline={params.baseline}"
        " --protocol={params.protocol}"
        " --datasets {params.datasets}"
        " {params.rows:q}"
        " --csv={output.csv:q}"
        " 2> {log:q}"


use rule compare as compare_with with:
    output:
        csv="results/comparisons/with_{method}/{table}.csv",
    log:
        "logs/compare_with/{method}/{table}.log",
    params:
        baseline="{method}",


rule tabulate:
    """Write a table's rows as CSV, Markdown and LaTeX in the paper's arrangement."""
    input:
        metrics=ask(study.table_files, name="metrics.json"),
        comparisons="results/comparisons/{table}.csv",
        published=study.published,
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
        version=VERSIONS["tabulate"],
        name=as_is(study.name),
        note=as_is(study.note),
        protocol=study.protocol,
        datasets=ask(study.table_datasets),
        rows=ask(study.table_rows, name="metrics.json"),
        published=as_is([f"--published={path}" for path in study.published]),
    shell:
        "python -m pipeline.stages.tabulate"
        " --study-name={params.name:q}"
        " --study-note={params.note:q}"
        " --protocol={params.protocol}"
        " --datasets {params.datasets}"
        " {params.rows:q}"
        " --comparisons={input.comparisons:q}"
        " {params.published:q}"
        " --csv={output.csv:q}"
        " --markdown={output.markdown:q}"
        " --tex={output.tex:q}"
        " 2> {log:q}"


rule draw_curves:
    """Draw R@1 against the amount of training data, every point with its interval."""
    input:
        files=ask(study.curve_files),
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
        version=VERSIONS["draw_curves"],
        protocol=study.protocol,
        against=ask(study.curve_axis),
        points=ask(study.curve_points),
    shell:
        "python -m pipeline.stages.draw_curves"
        " --protocol={params.protocol}"
        " --against={params.against}"
        " {params.points:q}"
        " --csv={output.csv:q}"
        " --svg={output.svg:q}"
        " 2> {log:q}"
