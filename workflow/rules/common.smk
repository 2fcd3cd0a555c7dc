"""What the rules ask of the configuration: checks once, then functions that return paths and command-line flags."""

import ast
import functools
import os
from pathlib import Path

from snakemake.exceptions import WorkflowError

from pipeline.data.shards.partition import read_assignment
from pipeline.study import GENERATED, check_config, pairing_flags, training_flags
from pipeline.errors import PipelineError
from pipeline.models.backbones import BACKBONES, PUBLISHED

try:
    check_config(config, Path(workflow.basedir) / "workflow" / "schemas" / "config.schema.yaml")
except PipelineError as error:
    raise WorkflowError(str(error)) from None


wildcard_constraints:
    dataset="|".join(config["datasets"]),
    split="[A-Za-z0-9_-]+",
    shard="00000|[a-z0-9_]+_[0-9a-f]{8}",
    run="[a-z0-9_]+",
    seed=r"\d+",
    target="|".join(config["datasets"]),
    table="|".join(config["tables"]),
    curve="|".join(config.get("curves", {})) or "(?!)",
    backbone="|".join(PUBLISHED),
    learning_rate=r"[0-9.e+-]+",


def code_of(stage):
    """The stage's module and every module of the package that it imports, directly or not.

    They are inputs of the stage's rule, because Snakemake does not look into `python -m`.
    """
    found, queue = set(), [f"pipeline.stages.{stage}"]
    while queue:
        name = queue.pop()
        path = Path(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if not name.startswith("pipeline") or path in found or not path.exists():
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                queue += [item.name for item in node.names]
            elif isinstance(node, ast.ImportFrom):
                queue += [node.module, *(f"{node.module}.{item.name}" for item in node.names)]
            elif isinstance(node, ast.Name) and node.id == "import_module":  # by name: any module beside it
                queue += [".".join(beside.with_suffix("").parts) for beside in sorted(path.parent.glob("*.py"))]
    return sorted(str(path) for path in found)


def dataset_root(wildcards):
    """The raw tree of a dataset."""
    return config["datasets"][wildcards.dataset]["root"]


def dataset_listing(wildcards):
    """Lists, Parquet files, tars and folders of a raw tree that the study does not make itself.

    They change when a clip comes or goes. An audio file that is replaced under its name is not seen, because looking at
    every file of a large tree takes minutes.
    """
    root = Path(dataset_root(wildcards))
    if root.as_posix().startswith(GENERATED):
        return []
    listing = [str(path) for path in root.glob("*.csv")]
    for folder, _, names in os.walk(root):
        listing += [folder, *(os.path.join(folder, name) for name in names if name.endswith((".parquet", ".tar")))]
    return sorted(listing)


def recordings_audio(wildcards):
    """The recordings that the soundscapes are mixed from."""
    return sorted(map(str, Path("data/recordings/audio").glob("*.ogg")))


def dataset_adapter(wildcards):
    """The name of the adapter that reads the raw tree."""
    return config["datasets"][wildcards.dataset]["adapter"]


def dropped_fraction(wildcards):
    """The share of a split's rows that may be unusable."""
    return config["datasets"][wildcards.dataset].get("max_dropped_fraction", 0)


def caption_flag(wildcards):
    """Whether clips of this dataset need captions."""
    return "--labeled" if config["datasets"][wildcards.dataset]["captions"] else "--unlabeled"


def raw_datasets():
    """The datasets that are sharded here, as a regular expression."""
    return "|".join(name for name, dataset in config["datasets"].items() if not dataset.get("shards")) or "(?!)"


def ready_datasets():
    """The datasets that come as shards, as a regular expression; one that nothing matches when there are none."""
    return "|".join(name for name, dataset in config["datasets"].items() if dataset.get("shards")) or "(?!)"


def shards_address(wildcards):
    """Where the shards of a split lie that are not made here."""
    return f"{config['datasets'][wildcards.dataset]['shards'].rstrip('/')}/{wildcards.split}"


def tars_place(wildcards):
    """Whether the tars of ready shards are copied."""
    return config["datasets"][wildcards.dataset].get("tars", "copy")


@functools.cache
def assignment_of(catalog, modified_ns):
    """What stands in every shard of a catalog, computed once for all its jobs; `modified_ns` tells versions apart."""
    return {shard.shard: shard for shard in read_assignment(catalog, config["shards"]["clips_per_shard"])}


def shards_of(wildcards):
    """What stands in every shard of a split, known once its catalog is written."""
    catalog = Path(checkpoints.index_audio.get(dataset=wildcards.dataset, split=wildcards.split).output.catalog)
    return assignment_of(catalog, catalog.stat().st_mtime_ns)


def shard_rows(wildcards):
    """The row files of all shards of a split."""
    return [f"results/shards/{wildcards.dataset}/{wildcards.split}/{shard}.parquet" for shard in shards_of(wildcards)]


def shard_digest(wildcards):
    """The digest of a shard's rows of the catalog: a shard is made again when it changes."""
    shards = shards_of(wildcards)
    return shards[wildcards.shard].digest if wildcards.shard in shards else "none"


def shard_clips(wildcards):
    """How many rows of the catalog a shard has, by which they are found without reading the others."""
    shards = shards_of(wildcards)
    return shards[wildcards.shard].rows if wildcards.shard in shards else 0


def split_path(dataset, role):
    """DATASET/SPLIT of the split that a dataset uses in a role (train, validation or test)."""
    return f"{dataset}/{config['datasets'][dataset]['splits'][role]}"


def run_config(run):
    """What the configuration says of a run; `pretrain` is one, on the pretraining dataset."""
    if run == "pretrain":
        return {"objective": "finetune", "labeled": [config["pretrain"]["dataset"]], "unlabeled": []}
    return {"labeled": [], "unlabeled": [], **config["runs"][run]}


def run_settings(run):
    """The training settings of a run: those of its own over training's."""
    return (
        config["pretrain"] if run == "pretrain" else {**config["training"], **config["runs"][run].get("settings", {})}
    )


def run_epochs(wildcards):
    """Epochs of a run."""
    return run_settings(wildcards.run)["epochs"]


def run_batch_size(wildcards):
    """Global batch of a run."""
    return run_settings(wildcards.run)["batch_size"]


def run_seed(wildcards):
    """The seed in a run's path."""
    return wildcards.seed


def labeled_summaries(wildcards):
    """The summaries of the labeled splits of a run."""
    return [
        f"results/shards/{split_path(name, 'train')}/manifest.json" for name in run_config(wildcards.run)["labeled"]
    ]


def unlabeled_summaries(wildcards):
    """The summaries of the unlabeled splits of a run."""
    return [
        f"results/shards/{split_path(name, 'train')}/manifest.json" for name in run_config(wildcards.run)["unlabeled"]
    ]


def partner_flags(wildcards, input):
    """Where the partners of a run's labeled clips come from."""
    if run_config(wildcards.run)["objective"] == "concatenate":
        return ["--mix-labeled"]
    manifests = [str(Path(path).with_suffix(".parquet")) for path in input.unlabeled]
    return ["--unlabeled", *manifests] if manifests else []


def fraction_flags(wildcards):
    """The shares of its clips that a run uses, where the configuration gives one."""
    given = run_config(wildcards.run)
    names = [name for name in ("labeled_fraction", "unlabeled_fraction") if name in given]
    return [f"--{name.replace('_', '-')}={given[name]}" for name in names]


def drawing_flags(wildcards):
    """How the captions, partners and windows of a run are drawn, where the configuration says it."""
    return pairing_flags(run_settings(wildcards.run))


def held_out_summaries(wildcards):
    """The summaries of every validation and test split of the study: nothing of them may be trained on."""
    splits = {
        split_path(name, role)
        for name, dataset in config["datasets"].items()
        for role in ("validation", "test")
        if role in dataset["splits"]
    }
    return [f"results/shards/{split}/manifest.json" for split in sorted(splits)]


def labeled_manifests(wildcards, input):
    """The manifests beside the labeled splits' summaries."""
    return [str(Path(path).with_suffix(".parquet")) for path in input.labeled]


def held_out_manifests(wildcards, input):
    """The manifests beside the held-out splits' summaries."""
    return [str(Path(path).with_suffix(".parquet")) for path in input.held_out]


def held_out_folders(wildcards, input):
    """The folders of the held-out splits' shards."""
    return [str(Path(path).parent) for path in input.held_out]


def run_flags(wildcards):
    """The training settings of a run as command-line flags."""
    return training_flags({**run_settings(wildcards.run), "objective": config["runs"][wildcards.run]["objective"]})


def candidate_flags(wildcards):
    """The settings of a run with another learning rate, for the sweep."""
    outcome = f"results/sweep/{wildcards.learning_rate}/{wildcards.run}/outcome.txt"
    return [*run_flags(wildcards), f"--learning-rate={float(wildcards.learning_rate)}", f"--outcome={outcome}"]


def pretrain_flags(wildcards):
    """The training settings of the pretraining as command-line flags."""
    return training_flags(config["pretrain"])


def weights_flags(wildcards):
    """Where the published weights and tokenizer lie, when the configuration names files."""
    backbone = config["backbone"]
    flags = [("--weights", backbone["weights"]), ("--tokenizer", backbone["tokenizer"])]
    return [word for name, value in flags if value is not None for word in (name, value)]


def weights_files(wildcards):
    """The files of the published weights that the configuration names; none when they come from the hub."""
    named = [config["backbone"][name] for name in ("weights", "tokenizer")]
    return [path for path in named if path is not None and Path(path).exists()]


def pretrained_model(wildcards):
    """The weights that every run starts from, and that `vanilla` is."""
    return f"results/pretrained/{config['backbone']['name']}/model.safetensors"


def run_model(wildcards):
    """The weights of a run."""
    if config["runs"][wildcards.run]["objective"] == "vanilla":
        return pretrained_model(wildcards)
    return f"results/runs/{wildcards.run}/seed{wildcards.seed}/model.safetensors"


def split_summary(role):
    """A function to the summary of the split that a target uses in a role."""

    def summary(wildcards):
        return f"results/shards/{split_path(wildcards.target, role)}/manifest.json"

    return summary


def expected_clips_flags(wildcards):
    """How many clips the publisher's test split holds, when the configuration says so."""
    expected = config["datasets"][wildcards.target].get("expected_test_clips")
    return [] if expected is None else ["--n-audio-expected", expected]


def seeds_of(run):
    """The seeds of a run: vanilla has no randomness of its own."""
    return config["seeds"][:1] if config["runs"][run]["objective"] == "vanilla" else config["seeds"]


def row_files(row, name):
    """A file of the evaluations of a table's row, for all its seeds."""
    folder = f"results/evaluations/{row['run']}"
    return [f"{folder}/seed{seed}/{row['target']}/{name}" for seed in seeds_of(row["run"])]


def table_files(name):
    """A function to a file of the evaluations of every row of a table."""

    def files(wildcards):
        return sorted({path for row in config["tables"][wildcards.table] for path in row_files(row, name)})

    return files


def table_datasets(wildcards):
    """The datasets that a table's runs train on, in the configuration's order: its columns of training data."""
    runs = [run_config(row["run"]) for row in config["tables"][wildcards.table]]
    return [name for name in config["datasets"] if any(name in run["labeled"] + run["unlabeled"] for run in runs)]


def training_cell(run, dataset):
    """What a run uses of a dataset: pairs (A+T), audio only (A) or nothing (-)."""
    uses = run_config(run)
    return "A+T" if dataset in uses["labeled"] else "A" if dataset in uses["unlabeled"] else "-"


def table_rows(name):
    """A function to the rows of a table as flags, with a file of their evaluations: --row 'TARGET|METHOD|CELLS' FILES...

    The label follows the cells where there is one.
    """

    def rows(wildcards):
        flags = []
        for row in config["tables"][wildcards.table]:
            cells = [training_cell(row["run"], dataset) for dataset in table_datasets(wildcards)]
            label = [row["label"]] if "label" in row else []
            flags += ["--row", "|".join([row["target"], row["method"], *cells, *label]), *row_files(row, name)]
        return flags

    return rows


def published_figures(wildcards):
    """The published figures that the tables show beside ours, where the study names a file of them."""
    return [config["study"]["published"]] if "published" in config["study"] else []


def published_flags(wildcards, input):
    """The same as flags."""
    return [word for path in input.published for word in ("--published", path)]


def curve_runs(curve):
    """The runs of a curve, in the order of its lines."""
    return [run for runs in config["curves"][curve]["lines"].values() for run in runs]


def run_files(curve, run):
    """The pairs file and the contributions of a run on a curve, for every seed of the run."""
    target = config["curves"][curve]["target"]
    return [
        path
        for seed in seeds_of(run)
        for path in (
            f"results/pairs/{run}/seed{seed}.parquet",
            f"results/evaluations/{run}/seed{seed}/{target}/contributions.parquet",
        )
    ]


def curve_files(wildcards):
    """The pairs files and contributions of every run of a curve."""
    return sorted({path for run in curve_runs(wildcards.curve) for path in run_files(wildcards.curve, run)})


def curve_points(wildcards):
    """The points of a curve as flags: --point LINE PAIRS CONTRIBUTIONS PAIRS CONTRIBUTIONS ..."""
    flags = []
    for line, runs in config["curves"][wildcards.curve]["lines"].items():
        for run in runs:
            flags += ["--point", line, *run_files(wildcards.curve, run)]
    return flags


def curve_axis(wildcards):
    """What a curve is drawn against."""
    return config["curves"][wildcards.curve]["against"]


def table_runs():
    """The runs of all tables, in the order of their first rows."""
    return list(dict.fromkeys(row["run"] for rows in config["tables"].values() for row in rows))


def study_metrics(wildcards):
    """The metrics of every row of every table, once each, in the tables' order."""
    return list(
        dict.fromkeys(
            path for rows in config["tables"].values() for row in rows for path in row_files(row, "metrics.json")
        )
    )


def study_logs(wildcards):
    """The log of the first seed of every trained run of the tables."""
    return [
        f"results/runs/{run}/seed{seeds_of(run)[0]}/training.parquet"
        for run in table_runs()
        if config["runs"][run]["objective"] != "vanilla"
    ]


def study_summaries(wildcards):
    """The summaries of every split that the tables' runs are trained or judged on."""
    targets = [row["target"] for rows in config["tables"].values() for row in rows]
    uses = [run_config(run) for run in table_runs()]
    trained = {name for use in uses for name in use["labeled"] + use["unlabeled"]}
    splits = [split_path(name, "train") for name in config["datasets"] if name in trained]
    splits += [split_path(name, "test") for name in dict.fromkeys(targets)]
    return [f"results/shards/{split}/manifest.json" for split in splits]


def parent_folders(wildcards, input):
    """The folders of the evaluations whose metrics are the input."""
    return [str(Path(path).parent) for path in input.metrics]


def sweep_targets():
    """The targets of every run of the sweep."""
    targets = {}
    for row in (row for rows in config["tables"].values() for row in rows):
        targets.setdefault(row["run"], []).append(row["target"])
        if "validation" not in config["datasets"][row["target"]]["splits"]:
            raise WorkflowError(f"datasets.{row['target']}.splits names no validation split, on which to choose")
    return {
        run: list(dict.fromkeys(names))
        for run, names in targets.items()
        if config["runs"][run]["objective"] != "vanilla"
    }


def sweep_outcomes(wildcards):
    """Whether each candidate of the sweep finished or diverged."""
    return [
        f"results/sweep/{learning_rate}/{run}/outcome.txt"
        for run in sweep_targets()
        for learning_rate in config["sweep"]["learning_rates"]
    ]


def sweep_diverged(wildcards):
    """The outcomes of the candidates that diverged, known once all are trained."""
    return Path(checkpoints.list_diverged.get().output.diverged).read_text().splitlines()


def sweep_metrics(wildcards):
    """The validation metrics of every run, learning rate and target of the sweep whose training did not diverge."""
    diverged = sweep_diverged(wildcards)
    return [
        f"results/sweep/{learning_rate}/{run}/{target}/metrics.json"
        for run, targets in sweep_targets().items()
        for learning_rate in config["sweep"]["learning_rates"]
        for target in targets
        if f"results/sweep/{learning_rate}/{run}/outcome.txt" not in diverged
    ]


def process_count(wildcards, resources):
    """Training processes: one a GPU; without, one a node."""
    return resources.gpu or resources.nodes


def device(wildcards, resources):
    """Where a job computes: on GPUs if it asked for any."""
    return "cuda" if resources.gpu else "cpu"


def target_split(role):
    """A function to the name of the split that a target uses in a role."""

    def split(wildcards):
        return config["datasets"][wildcards.target]["splits"][role]

    return split
