"""How a run begins: is its folder a run folder, and of the same run?"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...manifests.atomic import read_json, remove_temporaries, write_json
from ...manifests.errors import SettingsError
from ...temporal.run_folder import RunFolder
from ..settings import option_name

# What may change when a run is resumed:
FREE = set(
    "device gradient_checkpointing preload loaders checkpoint_minutes keep_checkpoints "
    "chunk_frames decoder command source manifest".split()  # the data's digest covers manifests
)
REMEDY = "put it back, or give a new folder"
PATHS = {"source", "manifest", "from_", "weights"}  # where they are files or folders


def check_root(files: RunFolder, command: str, *remains: Path) -> None:
    """Refuses a folder that holds something else than a run of a command, or what remains of a
    beginning.

    Raises:
        SettingsError: it does.
    """
    if not files.settings.exists():
        check_new(files, *remains)
        return
    begun_by = read_json(files.settings, REMEDY).get("command", command)
    if begun_by != command:
        raise SettingsError(
            f"{files.root}: holds a run of `vtnpipe {begun_by}`, which `vtnpipe {command}` can't "
            "resume; give a new folder"
        )


def check_new(files: RunFolder, *remains: Path) -> None:
    """Refuses a folder that holds anything but what a killed writer leaves.

    Raises:
        SettingsError: it does, or it is a file.
    """
    if not files.root.exists():
        return
    if not files.root.is_dir():
        raise SettingsError(f"{files.root}: is a file; give a new folder")
    known = {files.lock, *remains}
    if all(path in known or path.suffix == ".tmp" for path in files.root.iterdir()):
        return
    raise SettingsError(f"{files.root}: not empty; give a new folder")


def begin_run(
    files: RunFolder, *settings: Any, command: str, data: str, source: str | Path
) -> bool:
    """Notes what a new run is for, or checks that it is the one that the folder holds.

    Args:
        files: the run folder.
        settings: dataclasses.
        command: that begins it.
        data: a digest of what it learns from.
        source: where that is: noted for reports.

    Returns:
        whether nothing has been trained yet.

    Raises:
        SettingsError: the folder holds a run of other settings or other data.
    """
    for folder in (files.root, files.checkpoints):
        remove_temporaries(folder)
    value: dict[str, Any] = {"command": command, "data": data, "source": str(source)}
    for one in settings:
        value |= asdict(one)
    for key in PATHS & value.keys():
        if value[key] is not None and Path(value[key]).exists():  # else it is a word
            value[key] = str(Path(value[key]).absolute())
    if files.settings.exists() and any(files.checkpoints.glob("*.pt")):
        stored = read_json(files.settings, REMEDY)
        if value.keys() - FREE != stored.keys() - FREE:
            raise SettingsError(
                f"{files.root}: its run was begun by another version of vtnpipe; finish it with "
                "that one, or give a new folder"
            )
        differences = [
            f"{key if key == 'data' else option_name(key)} is {value.get(key)!r} here and "
            f"{stored.get(key)!r} there"
            for key in sorted(value.keys() - FREE)
            if value.get(key) != stored.get(key)
        ]
        if differences:
            raise SettingsError(
                f"{files.root}: holds another run: {'; '.join(differences)} (data: which videos "
                "have which class); use its settings and data to resume it, or another folder"
            )
        where = {key: value[key] for key in ("command", "source", "manifest") if key in value}
        write_json(stored | where, files.settings)
        return False
    write_json(value, files.settings)
    return True
