"""The command line: a table of lazily imported commands, and the exit codes.

Each command module defines its click command beside its function. Nothing here imports torch, h5py,
Dask or a decoder, so that `vtnpipe --help` is quick.
"""

import errno
import gc
import io
import os
import signal
import sys
import traceback
from importlib import import_module
from typing import Any, NoReturn

import click

from ..extract.cores import num_cpus
from ..manifests.errors import (
    EXIT_BUG,
    EXIT_OK,
    EXIT_STOPPED,
    EXIT_USAGE,
    VtnpipeError,
    first_line,
)
from .signals import STOP_SIGNALS

# Command → its module and click command, and its line in `vtnpipe --help`.
COMMANDS = {
    "demo": ("demo:command", "Run the main job on generated videos."),
    "doctor": ("doctor:command", "Show versions, decoders, devices, caches and disk."),
    "manifest": ("manifest:group", "Create, check, split and count video manifests."),
    "plan": ("plan:command", "Probe videos and plan their extraction."),
    "extract": ("extract:command", "Extract frame features of videos."),
    "features": ("features:group", "Show, verify, export and import stored features."),
    "train-temporal": ("train_temporal:command", "Train a temporal model on stored features."),
    "sweep": ("sweep:command", "Train recipes over seeds, and name the best."),
    "finetune": ("finetune:command", "Train backbone and temporal model together."),
    "evaluate": ("evaluate:command", "Score a model on a split."),
    "predict": ("predict:command", "Classify videos."),
    "explain": ("explain:command", "Show what a prediction depends on."),
    "report": ("report:command", "Write an HTML page about a run or a feature folder."),
    "model": ("model:group", "Show parameters, GMACs and settings of models."),
    "import-checkpoint": ("import_checkpoint:command", "Import a checkpoint of the VTN authors."),
    "cluster": ("cluster:group", "Print job scripts and batch files."),
}
# Errors of a disk that is full, lost or read-only, if nothing more specific was raised.
DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN),
    *(errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT),
}


class LazyCommand(click.Command):
    """Command whose module is imported when the command is used.

    Args:
        name: name of the command.
        target: `module:attribute` of the click command, below this package.
        help: line in the list of commands.
    """

    def __init__(self, name: str, target: str, help: str) -> None:
        super().__init__(name, help=help)
        self._target = target

    def load(self) -> click.Command:
        """Import and return the command."""
        module, _, attribute = self._target.partition(":")
        command: click.Command = getattr(import_module(f".{module}", __package__), attribute)
        return command

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Return the context of the imported command."""
        return self.load().make_context(info_name, args, parent, **extra)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    commands=[LazyCommand(name, target, help) for name, (target, help) in COMMANDS.items()],
)
@click.version_option(package_name="vtnpipe", message="%(prog)s %(version)s")
def cli() -> None:
    """Classify long videos with Video Transformer Networks: run the backbone once, train in
    minutes.

    Exit codes: 0 success; 1 finished, but some videos failed or are partial; 2 wrong usage or
    settings; 3 stopped, and the same command resumes; 70 a bug.
    """


def main() -> NoReturn:
    """Run the command line, and exit with a code of `manifests/errors.py`."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as set by `nohup`
            signal.signal(number, _interrupt)
    cores = num_cpus()
    if cores < (os.cpu_count() or 1):  # torch would start a thread for each core of the machine
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may have letters that it cannot encode
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(prog_name="vtnpipe", standalone_mode=False) or EXIT_OK
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except VtnpipeError as error:
        click.echo(f"vtnpipe: {error}", err=True)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("vtnpipe: stopped; the same command resumes", err=True)
        code = EXIT_STOPPED
    except Exception as error:  # noqa: BLE001  # most likely a bug, whose traceback is shown
        code = _report(error)
    _ignore_signals()
    gc.freeze()  # else the interpreter takes a second to look for cycles among torch's objects
    sys.exit(code)


def _report(error: Exception) -> int:
    """Print an error that no check foresaw; return the exit code."""
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        click.echo(f"vtnpipe: {error}; fix the problem and rerun the command", err=True)
        return EXIT_STOPPED
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        click.echo(
            f"vtnpipe: out of GPU memory ({first_line(error)}); process fewer frames at once, "
            "by the options that this command has: a smaller --batch-size or --chunk-frames, a "
            "larger --gradient-accumulation, --gradient-checkpointing, or --mode chunked",
            err=True,
        )
        return EXIT_USAGE
    if "torchvision::nms" in str(error):
        click.echo(
            "vtnpipe: torch and torchvision are of different builds; install both from the same "
            "index (`vtnpipe doctor` shows their versions)",
            err=True,
        )
        return EXIT_USAGE
    traceback.print_exc()
    click.echo("vtnpipe: this is a bug in vtnpipe; please report it with the lines above", err=True)
    return EXIT_BUG


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    _ignore_signals()  # a batch system may repeat it during the clean-up
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
