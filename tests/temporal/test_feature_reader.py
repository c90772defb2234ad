"""Features are copied to the first memory that has enough free space."""

from pathlib import Path

import pytest
from vtnpipe.manifests.errors import SettingsError
from vtnpipe.temporal.feature_reader import available_bytes, choose_place


def test_features_are_copied_if_they_fit_in_half_of_the_free_memory() -> None:
    free = available_bytes("cpu")
    assert choose_place("auto", 1000, "cpu")[0] == "cpu"
    place, why = choose_place("auto", free, "cpu")
    assert place is None
    assert "read from the shards: too large to copy" in why
    assert choose_place("auto", free // 3, "cpu", num_processes=2)[0] is None
    assert choose_place("none", 1000, "cpu")[0] is None
    with pytest.raises(SettingsError, match=r"--preload ram: .* too large"):
        choose_place("ram", free, "cpu")
    with pytest.raises(SettingsError, match="--preload gpu: the model is on the CPU"):
        choose_place("gpu", 1000, "cpu")


def test_free_memory_is_limited_by_the_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtnpipe.temporal.feature_reader.CGROUPS", tmp_path)
    monkeypatch.setattr("vtnpipe.temporal.feature_reader.OWN_CGROUP", tmp_path / "own")
    (tmp_path / "own").write_text("4:memory:/x\n0::/job/step\n")
    for name, limit, used in (("job", "5000", "2000"), ("job/step", "max", "1000")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "memory.max").write_text(f"{limit}\n")
        (tmp_path / name / "memory.current").write_text(f"{used}\n")
    assert available_bytes("cpu") == 3000
