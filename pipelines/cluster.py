"""`vtnpipe cluster`: batch files to start from, and the job script that `--cluster` submits."""

from importlib.resources import files
from typing import Literal

from .dask_cluster.client import job_script
from .extraction.settings import ExtractSettings

Template = Literal["extract", "extract-array", "train"]
TemplateSystem = Literal["slurm", "pbs"]


def cluster_script(settings: ExtractSettings) -> str:
    """The script of each job that `extract` would submit with these settings.

    Raises:
        SettingsError: they are not of a batch system, or dask-jobqueue is missing.
    """
    return job_script(settings, settings.workers, logs="FEATURES/jobs")


def cluster_template(name: Template, system: TemplateSystem) -> str:
    """A commented batch file, to be edited."""
    return (files(f"{__package__}.dask_cluster") / "templates" / f"{name}.{system}").read_text(
        encoding="utf-8"
    )
