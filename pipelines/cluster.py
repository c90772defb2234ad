"""`vtnpipe cluster`: print job script templates, and the script that `--cluster` submits."""

from importlib.resources import files
from typing import Any, Literal, get_args

import click
from rich.console import Console

from ..manifests.errors import EXIT_OK
from .dask_cluster.client import job_script
from .extraction.settings import ExtractSettings
from .options import settings_options

Template = Literal["extract", "extract-array", "train"]


def cluster_script(settings: ExtractSettings) -> str:
    """Return the script of each job that `extract` would submit.

    Raises:
        SettingsError: the settings name no batch system, or dask-jobqueue is missing.
    """
    return job_script(settings, logs="FEATURES/jobs")


def cluster_template(name: Template) -> str:
    """Return a commented SLURM job script, to be edited."""
    folder = files(f"{__package__}.dask_cluster") / "templates"
    return (folder / f"{name}.slurm").read_text(encoding="utf-8")


@click.group("cluster")
def group() -> None:
    """Print job scripts and templates of job scripts."""


@group.command("script")
@settings_options(ExtractSettings)
def script_command(console: Console, **options: Any) -> int:
    """Print the script of the jobs that `vtnpipe extract --cluster ...` submits; submit nothing.

    The options are those of `vtnpipe extract`, without MANIFEST and FEATURES, as in
    `vtnpipe cluster script --config job.yaml`.
    """
    click.echo(cluster_script(ExtractSettings(**options)), nl=False)
    return EXIT_OK


@group.command("template")
@click.argument("name", type=click.Choice(get_args(Template)))
def template_command(name: Template) -> int:
    """Print a commented SLURM job script to edit and submit: `> job.slurm`, `sbatch job.slurm`.

    extract runs on one node; extract-array is an array of jobs that share the work; train trains
    with torchrun. Each is requeued before its time limit.
    """
    click.echo(cluster_template(name), nl=False)
    return EXIT_OK
