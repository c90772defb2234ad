"""`vtnpipe doctor`: the screen about this machine."""

import errno
from importlib.metadata import version
from pathlib import Path

import pytest
from command_line import Vtnpipe
from vtnpipe.pipelines import doctor


def test_the_screen_is_short_and_has_what_matters(vtnpipe: Vtnpipe) -> None:
    ran = vtnpipe("doctor")
    lines = ran.stdout.splitlines()
    assert len(lines) <= 28
    for word in ("torch", "decord2", "PyAV", "cpu", "cuda", "weights cache", "disk", "they match"):
        assert word in ran.stdout
    for word in ("cores", "open files", "data", "shared memory", "flock", "renames can be flushed"):
        assert word in ran.stdout
    assert not any(line.startswith("!") for line in lines)


def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("HF_HOME", raising=False)
    # As for a user that the system does not know.
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    found = list(doctor._weights_cache())
    assert "~/.cache/huggingface" in found[0].text


def test_a_folder_is_tried(
    tmp_path: Path, vtnpipe: Vtnpipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_run_python", lambda name, *_, **__: doctor.Finding(name, "fails"))
    monkeypatch.setattr(doctor, "_devices", lambda: iter(()))

    def flock(descriptor: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    assert "claim files take its place" in vtnpipe("doctor", tmp_path).stdout
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(doctor, "has_flock", lambda folder: {}[folder])
    assert "does not exist" in vtnpipe("doctor", tmp_path / "none", code=2).stderr

    def refuse(folder: Path) -> bool:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(doctor, "has_flock", refuse)
    ran = vtnpipe("doctor", tmp_path, code=2)
    assert "! writing there" in ran.stdout
    assert "Read-only file system" in ran.stdout


def test_limits_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "num_cpus", lambda: 4)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("resource.getrlimit", lambda what: (64, 2**20))
    found = {one.name: one for one in doctor._limits()}
    assert found["cores"].text == "4 of 64, by affinity, job or quota"
    assert not found["open files"].is_ok
    assert not found["limit of a process's data"].is_ok


def test_a_missing_package_is_marked_and_exits_with_2(
    vtnpipe: Vtnpipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("click", "decord2-missing", "torch-missing"))
    monkeypatch.setattr(doctor, "OPTIONAL", ("decord2-missing",))
    monkeypatch.setattr(doctor, "DEVICES", "raise SystemExit('no devices')")
    fine = doctor.Finding("decoder", "works")
    monkeypatch.setattr(doctor, "_run_python", lambda *_, **__: fine)
    monkeypatch.setattr(doctor, "_devices", lambda: iter([doctor.Finding("cpu", "fails", False)]))
    lines = vtnpipe("doctor", code=2).stdout.splitlines()
    marked = [line.split()[1] for line in lines if line.startswith("!")]
    assert marked == ["torch-missing", "cpu"]
    assert any("decord2-missing" in line and "not installed" in line for line in lines)
    assert any(version("click") in line for line in lines)
