"""`vtnpipe cluster`: batch files to start from, and the job script that `--cluster` submits."""

from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from .cluster import job_script
from .cluster_settings import ClusterSettings
from .settings import at_least, setting

Template = Literal["extract", "extract-array", "train"]
TemplateSystem = Literal["slurm", "pbs"]


@dataclass(frozen=True, kw_only=True)
class ScriptSettings(ClusterSettings):
    """The settings of `vtnpipe cluster script`."""

    workers: int | None = setting(
        None,
        help="Worker processes of each job; by default one per core, or one per GPU.",
        check=at_least(1),
    )


def cluster_script(settings: ScriptSettings) -> str:
    """The script of each job that `extract` would submit with these settings.

    Raises:
        SettingsError: they are not of a batch system, or dask-jobqueue is missing.
    """
    return job_script(settings, settings.workers, logs="FEATURES/jobs")


def cluster_template(name: Template, system: TemplateSystem) -> str:
    """A commented batch file, to be edited."""
    return (files(__package__) / "templates" / f"{name}.{system}").read_text(encoding="utf-8")
