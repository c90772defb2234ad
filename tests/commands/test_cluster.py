"""`vtnpipe cluster`: the script of submitted jobs, and batch files to start from."""

import subprocess
from pathlib import Path

import pytest
from command_line import Vtnpipe

CONFIG = """
device: cuda
precision: bfloat16
jobs: 3
cluster:
  kind: slurm
  queue: long
  account: me
  walltime: "25:30:00"
  cores: 32
  memory: 64GiB
  job_extra_directives: ["--gres=gpu:1"]
  job_script_prologue: ["module load cuda"]
"""


def test_a_script_has_the_directives_of_the_config_file(tmp_path: Path, vtnpipe: Vtnpipe) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    script = vtnpipe("cluster", "script", "--config", "c.yaml").stdout
    lines = script.splitlines()
    assert {
        *("#SBATCH -p long", "#SBATCH -A me", "#SBATCH -t 25:30:00", "#SBATCH --mem=64G"),
        *("#SBATCH --cpus-per-task=32", "#SBATCH --gres=gpu:1", "module load cuda"),
    } <= {*lines}
    (command,) = (line for line in lines if "dask_worker" in line)
    assert "--resources GPU=1" in command
    assert "--nworkers" not in command  # one, with its GPU
    assert "FEATURES/jobs" in script
    assert {path.name for path in tmp_path.iterdir()} == {"c.yaml"}
    # The command line overrides the file.
    options = ("--config", "c.yaml", "--workers", 2, "--cluster", "pbs", "--device", "cpu")
    (tmp_path / "c.yaml").write_text(CONFIG.replace("cores: 32", "cores: 6"))
    script = vtnpipe("cluster", "script", *options).stdout
    assert "#PBS -q long" in script
    assert "--nworkers 2 " in script
    assert "GPU" not in script


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("queue", "partition", "'partition'; the keys are the arguments of dask-jobqueue's"),
        ("memory: 64GiB", "memory: many", "cluster: Could not interpret 'many'"),
        ("cores: 32", "cores: many", "cluster: cores 'many': it must be a whole number"),
        ("jobs: 3", "jobs: 2:8", "jobs"),
        ("  kind: slurm\n", "", "cluster: the section names no batch system"),
        ("kind: slurm", "kind: loadleveler", "'loadleveler' is not one of"),
        ("kind: slurm", "kind: local", "the section names no batch system"),
        ("cluster:\n", "clusters:\n", "unknown option 'clusters'"),
    ],
)
def test_a_bad_config_file_has_its_error(
    tmp_path: Path, vtnpipe: Vtnpipe, old: str, new: str, message: str
) -> None:
    assert old in CONFIG
    (tmp_path / "c.yaml").write_text(CONFIG.replace(old, new))
    assert message in vtnpipe("cluster", "script", "--config", "c.yaml", code=2).stderr


def test_workers_of_this_machine_have_no_script(vtnpipe: Vtnpipe) -> None:
    assert "--cluster local: has no jobs" in vtnpipe("cluster", "script", code=2).stderr


@pytest.mark.parametrize("name", ["extract", "extract-array", "train"])
def test_templates_are_shell_with_directives(vtnpipe: Vtnpipe, name: str) -> None:
    text = vtnpipe("cluster", "template", name).stdout
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    directives = [line for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert any("vtnpipe-" in line for line in directives)
    assert any("08:00:00" in line for line in directives)
    assert any("--signal=B:USR1@" in line for line in directives)
    assert f"sbatch {name}.slurm" in text
    assert any("--array=1-4" in line for line in directives) == (name == "extract-array")
