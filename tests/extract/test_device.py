"""Device and precision."""

import pytest
import torch
from vtnpipe.extract.device import (
    check_can_compile,
    cpu_precision,
    num_gpus,
    resolve,
    resolve_device,
    resolve_precision,
)
from vtnpipe.manifests.errors import SettingsError


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SettingsError, match=r"--compile yes: no C\+\+ compiler \(g\+\+, clang"):
        check_can_compile("cpu")
    with pytest.raises(SettingsError, match="--compile"):
        resolve("cpu", "float32", is_compiled=True)


def test_devices_that_are_not_there_are_refused() -> None:
    assert resolve_device("cpu") == "cpu"
    for device in ("gpu", "cuda:x", "cpu:1", "cpu:", "cuda:", f"cuda:{torch.cuda.device_count()}"):
        with pytest.raises(SettingsError, match=f"--device '{device}'"):
            resolve_device(device)
    assert num_gpus("cuda:3") == 1
    assert num_gpus("cuda") == torch.cuda.device_count()


def test_a_precision_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_precision("bfloat16", "cpu") == ("bfloat16", "as given")
    precision, reason = resolve_precision("auto", "cpu")
    assert precision in ("float32", "bfloat16")
    assert "the CPU has" in reason
    assert resolve("cpu", "auto") == ("cpu", precision, reason)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert cpu_precision() == ("bfloat16", "the CPU has amx_bf16")
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    assert cpu_precision()[0] == "float32"
