"""The command line: each command checks its arguments, calls one function, and returns an exit
code.

Imported on every start, so nothing here, nor what it imports, may load torch, h5py, Dask or a
decoder.
"""

import errno
import gc
import signal
import sys
import traceback
from typing import Any, NoReturn, get_args

import click

from ..manifests.errors import (
    EXIT_BUG,
    EXIT_OK,
    EXIT_STOPPED,
    EXIT_USAGE,
    EXIT_WITH_FAILURES,
    VtnpipeError,
    first_line,
)
from .build_manifest import BuildSettings, build_manifest
from .cluster import (
    Template,
    TemplateSystem,
    cluster_script,
    cluster_template,
)
from .console import LastingConsole, say
from .demo import DemoSettings, demo
from .doctor import doctor
from .evaluate import EvaluateSettings, evaluate
from .explain import ExplainSettings, explain
from .export import ExportSettings, export_features
from .extract import extract
from .extraction.settings import ExtractSettings
from .features import VerifySettings, show_features, show_video, verify_features
from .finetune import FinetuneSettings, finetune
from .import_checkpoint import ImportCheckpointSettings, import_checkpoint
from .manifest import SplitSettings, check_manifest, show_manifest, split_manifest
from .model import PAPER_FRAMES, show_model
from .options import settings_options
from .parity import ParitySettings, parity
from .plan import plan
from .predict import PredictSettings, predict
from .report import ReportSettings, report
from .stopping import STOP_SIGNALS
from .train_temporal import TrainTemporalSettings, train_temporal

# Of a disk that is full, lost, or may not be written, where nothing nearer says so.
DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN),
    *(errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT),
}
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=_CONTEXT)
@click.version_option(package_name="vtnpipe", message="%(prog)s %(version)s")
def cli() -> None:
    """Classify long videos with Video Transformer Networks: run the backbone once, train in
    minutes.

    Exit codes: 0 all went well; 1 finished, but some videos failed or are partial; 2 wrong usage or
    settings; 3 stopped, and the same command resumes; 70 a bug.
    """


@cli.command("demo")
@click.argument("folder", default="vtnpipe-demo")
@settings_options(DemoSettings)
def demo_command(folder: str, **options: Any) -> int:
    """Draw labelled videos in FOLDER (vtnpipe-demo); extract, train-temporal, evaluate, report on
    them.
    """
    demo(folder, DemoSettings(**options), console=LastingConsole())
    return EXIT_OK


@cli.command("plan")
@click.argument("manifest")
@settings_options(ExtractSettings)
def plan_command(manifest: str, **options: Any) -> int:
    """Look at every video in MANIFEST, and say what extracting it will be: frames, bytes, time.

    The options are those of `vtnpipe extract`; --jobs, --part, --finish, --retry, --redo-changed,
    --max-failures and --time-budget change nothing here. All rows count, also those that are
    extracted already. No weights are downloaded. The exit code is 1 where a file can't be read.
    """
    return plan(manifest, ExtractSettings(**options), console=LastingConsole()).exit_code


@cli.command("extract")
@click.argument("manifest")
@click.argument("features")
@settings_options(ExtractSettings)
def extract_command(manifest: str, features: str, **options: Any) -> int:
    """Run a frozen backbone over every frame of the videos in MANIFEST, into the folder FEATURES.

    The same command again resumes: finished shards stay, and new rows of the manifest are added.
    """
    report = extract(manifest, features, ExtractSettings(**options), console=LastingConsole())
    return report.exit_code


@cli.command("parity")
@click.argument("features")
@settings_options(ParitySettings)
def parity_command(features: str, **options: Any) -> int:
    """Compute a sample of FEATURES again by the plainest path, and say how far they are from it.

    The videos must be where they were. Cosines below 0.999 are worth a look.
    """
    parity(features, ParitySettings(**options), console=LastingConsole())
    return EXIT_OK


@cli.command("train-temporal")
@click.argument("features")
@click.argument("run")
@settings_options(TrainTemporalSettings)
def train_temporal_command(features: str, run: str, **options: Any) -> int:
    """Fit a temporal model on the stored FEATURES, in the run folder RUN.

    The recipe is the paper's for the features' backbone unless options say otherwise. The same
    command again resumes.
    """
    train_temporal(features, run, TrainTemporalSettings(**options), console=LastingConsole())
    return EXIT_OK


@cli.command("finetune")
@click.argument("manifest")
@click.argument("run")
@settings_options(FinetuneSettings)
def finetune_command(manifest: str, run: str, **options: Any) -> int:
    """Fit backbone and temporal model together on the videos in MANIFEST, in the run folder RUN.

    Clips are decoded on the fly. The same command again resumes. With --from RUN, the model keeps
    RUN's shape: --preset, --encoder, --layers and the like are for new ones.
    """
    return finetune(manifest, run, FinetuneSettings(**options), console=LastingConsole()).exit_code


@cli.command("evaluate")
@click.argument("model")
@click.argument("source")
@settings_options(EvaluateSettings)
def evaluate_command(model: str, source: str, **options: Any) -> int:
    """Score MODEL (a model or run folder) on a split of SOURCE: a feature folder, or a manifest,
    whose videos are decoded.
    """
    return evaluate(model, source, EvaluateSettings(**options), console=LastingConsole()).exit_code


@cli.command("predict")
@click.argument("model")
@click.argument("video", nargs=-1)
@settings_options(PredictSettings)
def predict_command(model: str, video: tuple[str, ...], **options: Any) -> int:
    """Classify each VIDEO with MODEL, a model or run folder."""
    return predict(model, video, PredictSettings(**options), console=LastingConsole()).exit_code


@cli.command("report")
@click.argument("folder")
@settings_options(ReportSettings)
def report_command(folder: str, **options: Any) -> int:
    """Write one HTML page of FOLDER, a run or model folder, or a feature folder.

    Of a run: figures, curves, confusion, classes, and what the model attends to in its worst and
    best videos; of features: what failed, what the videos are, and whether the features look sound.
    """
    report(folder, ReportSettings(**options), console=LastingConsole())
    return EXIT_OK


@cli.command("explain")
@click.argument("model")
@click.argument("video")
@settings_options(ExplainSettings)
def explain_command(model: str, video: str, **options: Any) -> int:
    """Say what MODEL attends to in the file VIDEO, and what its answer depends on.

    Hiding a part at a time is the check on attention: does the answer change where it attends to?
    """
    return explain(model, video, ExplainSettings(**options), console=LastingConsole()).exit_code


@cli.command("import-checkpoint")
@click.argument("source")
@click.argument("model")
@settings_options(ImportCheckpointSettings)
def import_checkpoint_command(source: str, model: str, **options: Any) -> int:
    """Make the model folder MODEL from SOURCE, a VTN checkpoint (.pyth) of the authors' code."""
    import_checkpoint(source, model, ImportCheckpointSettings(**options), console=LastingConsole())
    return EXIT_OK


@cli.group("model")
def model_group() -> None:
    """Look at models."""


@model_group.command("show")
@click.argument("model")
@click.option(
    "--frames",
    default=PAPER_FRAMES,
    show_default=True,
    type=click.IntRange(min=1),
    help="Frames of the video whose GMACs are counted.",
)
def model_show(model: str, frames: int) -> int:
    """Show parameters, GMACs and settings of MODEL, a preset or a model or run folder."""
    say(LastingConsole(), *show_model(model, num_frames=frames))
    return EXIT_OK


@cli.group("features")
def features_group() -> None:
    """Look into a feature folder."""


@features_group.command("show")
@click.argument("features")
@click.argument("video_id", nargs=-1)
def features_show(features: str, video_id: tuple[str, ...]) -> int:
    """Show what FEATURES holds, or what it holds of each VIDEO_ID."""
    console = LastingConsole()
    if not video_id:
        say(console, *show_features(features))
    for one in video_id:
        say(console, *show_video(features, one))
    return EXIT_OK


@features_group.command("verify")
@click.argument("features")
@settings_options(VerifySettings)
def features_verify(features: str, **options: Any) -> int:
    """Check every byte of FEATURES: checksums, values, counts against the plan."""
    return verify_features(features, VerifySettings(**options), console=LastingConsole())


@features_group.command("export")
@click.argument("features")
@click.argument("folder")
@click.argument("video_id", nargs=-1)
@settings_options(ExportSettings)
def features_export(features: str, folder: str, video_id: tuple[str, ...], **options: Any) -> int:
    """Write FEATURES, or those of each VIDEO_ID, into FOLDER: ID.npy, ID.json with fps and times,
    and database.json. A slash in an id becomes %2F.

    For action-localisation tools such as ActionFormer and OpenTAD, give --fps.
    """
    settings = ExportSettings(**options)
    return export_features(features, folder, video_id, settings, console=LastingConsole()).exit_code


@cli.group("cluster")
def cluster_group() -> None:
    """Run on a cluster: job scripts, and batch files to start from."""


@cluster_group.command("script")
@settings_options(ExtractSettings)
def cluster_script_command(**options: Any) -> int:
    """Print the script of the jobs that `vtnpipe extract --cluster ...` submits; submit nothing.

    The options are those of `vtnpipe extract`, without MANIFEST and FEATURES, as in
    `vtnpipe cluster script --config job.yaml`.
    """
    click.echo(cluster_script(ExtractSettings(**options)), nl=False)
    return EXIT_OK


@cluster_group.command("template")
@click.argument("name", type=click.Choice(get_args(Template)))
@click.option(
    "--system",
    type=click.Choice(get_args(TemplateSystem)),
    default="slurm",
    show_default=True,
    help="Batch system of the file.",
)
def cluster_template_command(name: Template, system: TemplateSystem) -> int:
    """Print a commented batch file to edit and submit: `> job.slurm`, then `sbatch job.slurm`.

    extract is one command that submits jobs itself; extract-array is an array of jobs that need no
    such command; train is a training by torchrun, requeued at its walltime.
    """
    click.echo(cluster_template(name, system), nl=False)
    return EXIT_OK


@cli.group("manifest")
def manifest_group() -> None:
    """Make, check, split and count video manifests."""


@manifest_group.command("build")
@click.argument("source", nargs=-1, required=True)
@click.option("-o", "--output", required=True, metavar="MANIFEST", help="The CSV to write.")
@settings_options(BuildSettings)
def manifest_build(source: tuple[str, ...], output: str, **options: Any) -> int:
    """Write a manifest of a folder with one sub-folder per class, or of a data set's own files.

    SOURCE is that folder, which may hold train, val and test first, and classes in those; or
    Kinetics' CSV files, the folder of UCF101's or HMDB51's splits, the
    JSON files of Something-Something v2 or ActivityNet, or lists of paths and class numbers.
    """
    report = build_manifest(source, output, BuildSettings(**options))
    say(LastingConsole(), *report.lines)
    return report.exit_code


@manifest_group.command("check")
@click.argument("manifest")
def manifest_check(manifest: str) -> int:
    """Check MANIFEST's rules, and that every file is there; list those that are not."""
    faults = list(check_manifest(manifest))
    count = f"{len(faults):,} rows whose file is missing, empty or not a regular one"
    say(LastingConsole(), *faults, f"{manifest}: {count if faults else 'ok'}")
    return EXIT_WITH_FAILURES if faults else EXIT_OK


@manifest_group.command("split")
@click.argument("manifest")
@click.option("-o", "--output", required=True, metavar="MANIFEST", help="The CSV to write.")
@settings_options(SplitSettings)
def manifest_split(manifest: str, output: str, **options: Any) -> int:
    """Draw train, val and test for MANIFEST's rows, each class by itself.

    Splits that they have are drawn anew. Of several labels a row, each is a class; labels that are
    numbers are drawn all together.
    """
    split_manifest(manifest, output, SplitSettings(**options))
    return _echo_counts(output)


@manifest_group.command("show")
@click.argument("manifest")
def manifest_show(manifest: str) -> int:
    """Count MANIFEST's rows by label and split."""
    return _echo_counts(manifest)


def _echo_counts(manifest: str) -> int:
    say(LastingConsole(), *show_manifest(manifest))
    return EXIT_OK


@cli.command("doctor")
def doctor_command() -> int:
    """Show versions, decoders, processors, caches and disk of this machine."""
    findings, exit_code = doctor()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = " " if finding.is_fine else "!"
        click.echo(f"{mark} {finding.name.ljust(width)}  {finding.text}")
    return exit_code


def main() -> NoReturn:
    """Runs the command line and exits with the code that `manifests/errors.py` gives."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` asks
            signal.signal(number, _interrupt)
    try:
        code = cli.main(prog_name="vtnpipe", standalone_mode=False) or EXIT_OK
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except VtnpipeError as error:
        click.echo(f"vtnpipe: {error}", err=True)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("vtnpipe: stopped; give the same command again to go on", err=True)
        code = EXIT_STOPPED
    except Exception as error:  # noqa: BLE001  # most likely a bug, shown whole
        code = _tell(error)
    _ignore_signals()
    gc.freeze()  # or Python goes through all that torch and timm made once more, for seconds
    sys.exit(code)


def _tell(error: Exception) -> int:
    """Says what a command failed with that none of its checks foresaw; returns the exit code."""
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        click.echo(f"vtnpipe: {error}; mend that, and give the same command again", err=True)
        return EXIT_STOPPED
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        click.echo(
            f"vtnpipe: the GPU's memory is full ({first_line(error)}); give fewer frames at once: "
            "a smaller --batch-size or --chunk-frames, a larger --gradient-accumulation, "
            "--gradient-checkpointing, or --mode chunked, whichever the command has",
            err=True,
        )
        return EXIT_USAGE
    traceback.print_exc()
    click.echo("vtnpipe: this is a bug in vtnpipe; please report it with the lines above", err=True)
    return EXIT_BUG


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    _ignore_signals()  # a batch system may send it again, while what runs is ended cleanly
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
