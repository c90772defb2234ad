"""Where tasks run: what jobs are given, who may connect, and runs in parts."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from numbered_videos import CLIP_LENGTHS
from vtnpipe.manifests.errors import FeaturesError, SettingsError, StoppedError
from vtnpipe.manifests.feature_folder import FeatureFolder, locked
from vtnpipe.manifests.shards import open_features
from vtnpipe.pipelines import cluster, dask_tasks
from vtnpipe.pipelines.cli import cli
from vtnpipe.pipelines.dask_cluster.jobqueue import ClusterSettings, JobSettings
from vtnpipe.pipelines.extract import extract
from vtnpipe.pipelines.extraction.settings import ExtractSettings

JOB = {
    "queue": "long",
    "account": "me",
    "walltime": "1-01:30:00",
    "memory": "64 GiB",
    "cores": 32,
    "gpus": 4,
    "prologue": ["module load cuda"],
    "env": {"HF_HOME": "/a cache"},
}
SCRIPTS = {
    "slurm": "#SBATCH -p long|#SBATCH -A me|#SBATCH -t 25:30:00|#SBATCH --mem=64G|"
    "#SBATCH --cpus-per-task=32|#SBATCH --gres=gpu:4",
    "pbs": "#PBS -q long|#PBS -A me|#PBS -l walltime=25:30:00|"
    "#PBS -l select=1:ncpus=32:mem=64gb:ngpus=4",
    "lsf": '#BSUB -q long|#BSUB -P "me"|#BSUB -W 25:30|#BSUB -n 32|#BSUB -gpu "num=4"',
    "sge": "#$ -q long|#$ -P me|#$ -l h_rt=25:30:00|#$ -l gpu=4",
    "htcondor": "accounting_group = me|RequestCpus = 32|request_gpus = 4|+MaxRuntime = 91800",
}


def _script(folder: Path, section: dict[str, Any], *options: str) -> str:
    (folder / "c.yaml").write_text(yaml.safe_dump({"cluster": section}))
    command = ["cluster", "script", "--config", str(folder / "c.yaml"), *options]
    ran = CliRunner().invoke(cli, command, standalone_mode=False)
    if ran.exception is not None:
        raise ran.exception
    return ran.stdout


@pytest.mark.parametrize("system", SCRIPTS)
def test_a_job_asks_for_what_the_section_says(system: str, tmp_path: Path) -> None:
    section = JOB | {"kind": system}
    if system == "htcondor":
        with pytest.raises(SettingsError, match="queue 'long': HTCondor has none"):
            _script(tmp_path, section)
        del section["queue"]
        section["directives"] = ["+Project = video"]
        with_directive = "+Project = video"
    else:
        section["directives"] = ["--mail-user=me"]
        with_directive = "--mail-user=me"
    lines = _script(tmp_path, section).splitlines()
    assert {*SCRIPTS[system].split("|")} <= {*lines}
    (command,) = (line for line in lines if "dask_worker" in line)
    assert "module load cuda" in "\n".join(lines)
    assert any(with_directive in line for line in lines)
    assert "HF_HOME=" in "\n".join(lines)
    # One process a GPU, two of Dask's threads each, and an end before the walltime.
    for words in ("--nworkers 4", "--nthreads 2", "--resources GPU=1", "--lifetime 91680s"):
        assert words in command
    assert {path.name for path in tmp_path.iterdir()} == {"c.yaml"}


def test_a_job_without_gpus_has_a_worker_for_each_core(tmp_path: Path) -> None:
    section = {"kind": "slurm", "cores": 6, "walltime": "10:00"}
    script = _script(tmp_path, section)
    assert "--nworkers 6 " in script
    assert "--resources" not in script
    assert "--lifetime 480s" in script  # four fifths: two minutes would be too much of it
    assert "--nworkers 3 " in _script(tmp_path, section, "--workers", "3")
    assert "#PBS" in _script(tmp_path, section, "--cluster", "pbs")
    script = _script(tmp_path, {"kind": "slurm"})  # no walltime: its queue's, not half an hour
    assert "--lifetime" not in script
    assert "#SBATCH -t" not in script
    script = _script(tmp_path, section, "--tls")
    assert "tls://SCHEDULER:PORT" in script
    assert "--tls-ca-file" in script


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "slurm", "partition": "x"}, "unknown key 'partition'; there are kind, account,"),
        ({"kind": "slurm", "walltime": "soon"}, "walltime 'soon': it must be HOURS"),
        ({"kind": "slurm", "walltime": 3600}, "walltime 3600: it must be HOURS"),
        ({"kind": "slurm", "memory": 16}, "memory 16: it must be text"),
        ({"kind": "slurm", "memory": "many"}, "memory 'many': it must be as 16GiB"),
        ({"kind": "slurm", "cores": 0}, "cores 0: it must be at least 1"),
        ({"kind": "slurm", "directives": "-x"}, "directives '-x': it must be a list of lines"),
        ({"kind": "slurm", "env": ["A=b"]}, "it must map names to values"),
        ({"kind": "htcondor", "directives": ["x"]}, "HTCondor's must be NAME = VALUE"),
        ({"kind": "local"}, "--cluster local: there is no job"),
        ({"queue": "gpu"}, "cluster: the section does not say of which batch system"),
    ],
)
def test_a_bad_section_has_its_error(section: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        _script(tmp_path, section)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"jobs": "4"}, "on this machine, give --workers"),
        ({"jobs": "3:2"}, "--jobs '3:2'"),
        ({"jobs": "0"}, "--jobs '0'"),
        ({"jobs": "many"}, "--jobs 'many'"),
        ({"scheduler": "tcp://a:1", "cluster": "slurm"}, "leave out one of them"),
        ({"part": "0/3"}, "--part '0/3': it must be I/N"),
        ({"part": "4/3"}, "--part '4/3': it must be I/N"),
        ({"part": "1/3", "finish": True}, "--part 1/3 with --finish"),
        ({"part": "1/3", "cluster": "slurm"}, "a part runs on its own machine"),
        ({"device": "cuda:1", "cluster": "slurm"}, "each has a GPU of its own; give --device cuda"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        ExtractSettings(**settings)
    assert ClusterSettings(jobs="2:8", cluster="slurm").num_jobs == (2, 8)


@pytest.mark.parametrize(("name", "gpu"), [("vtnpipe-0-3", 1), (2, 0), ("1", 1), ("tcp://a:1", -1)])
def test_a_worker_has_the_gpu_of_its_number(
    monkeypatch: pytest.MonkeyPatch, name: object, gpu: int
) -> None:
    monkeypatch.setattr("distributed.get_worker", lambda: SimpleNamespace(name=name))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    if gpu < 0:
        with pytest.raises(SettingsError, match="nothing says which is its own"):
            dask_tasks._own_gpu()
        monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
        assert dask_tasks._own_gpu() == "cuda:0"
    else:
        assert dask_tasks._own_gpu() == f"cuda:{gpu}"


def test_features_do_not_keep_a_jobs_environment() -> None:
    settings = ExtractSettings(cluster="slurm", job=JobSettings(env=(("TOKEN", "secret"),)))
    assert "secret" not in str(settings.record)
    assert {"backbone", "workers"} <= settings.record.keys()


def test_a_scheduler_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1.0)
    (tmp_path / "s.json").write_text("no scheduler's")
    for where in ("tcp://127.0.0.1:9", "nonsense", str(tmp_path / "s.json")):
        with (
            pytest.raises(SettingsError, match="no Dask scheduler answers there"),
            cluster.open_client(ClusterSettings(scheduler=where)),
        ):
            pass


def test_tls_lets_nobody_in_without_its_certificate(tmp_path: Path) -> None:
    code = """
import socket, ssl
from distributed import Client
from distributed.security import Security
from vtnpipe.pipelines.dask_cluster.client import open_client
from vtnpipe.pipelines.extraction.scheduler import on_each_worker, present_workers
from vtnpipe.pipelines.dask_cluster.jobqueue import ClusterSettings

def refused(address, **options):
    try:
        Client(address, timeout=2, **options).close()
    except (OSError, ValueError) as error:
        return type(error).__name__
    return ""

if __name__ == "__main__":
    with open_client(ClusterSettings(tls=True), num_workers=1) as client:
        address = client.scheduler.address
        workers = list(present_workers(client))
        print("addresses", address, *workers)
        print("works", *on_each_worker(client, len, [1, 2, 3]))
        for one in (address, *workers):
            host, port = one.removeprefix("tls://").split(":")
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with socket.create_connection((host, int(port))) as plain:
                with context.wrap_socket(plain) as secret:
                    print("speaks", secret.version())
                    try:
                        print("answers", secret.recv(1))
                    except ssl.SSLError as error:
                        print("answers", error.reason)
        print("plain", refused(address.replace("tls://", "tcp://")))
        print("other", refused(address, security=Security.temporary()))
"""
    (tmp_path / "tls.py").write_text(code)
    ran = subprocess.run(
        [sys.executable, "tls.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    lines = [line.split(maxsplit=1) for line in ran.stdout.splitlines()]
    found = {words[0]: words[1] if len(words) > 1 else "" for words in lines}
    assert all(word.startswith("tls://127.0.0.1:") for word in found["addresses"].split())
    assert found["works"] == "3"
    assert [words for words in lines if words[0] == "speaks"] == [["speaks", "TLSv1.3"]] * 2
    assert "CERTIFICATE_REQUIRED" in found["answers"]
    assert found["plain"]
    assert found["other"]


def test_parts_share_a_plan_and_the_last_one_reports(
    clips: dict[str, Path], tmp_path: Path
) -> None:
    rows = [f"{name},{path},{name},train\n" for name, path in clips.items()]
    manifest, folder = tmp_path / "m.csv", tmp_path / "f"
    manifest.write_text("video_id,path,label,split\n" + "".join(rows))
    means = ExtractSettings(
        backbone="toy_backbones:mixer", weights="none", shard_frames="10", workers=1
    )

    report = extract(manifest, folder, replace(means, part="1/2"))
    num_frames = sum(CLIP_LENGTHS.values())
    assert 0 < report.num_frames < num_frames
    assert not (folder / "report.json").exists()
    with pytest.raises(StoppedError, match="tasks have no shard"):
        extract(manifest, folder, replace(means, finish=True))
    temporary = folder / "shards/.another-parts.tmp"
    temporary.touch()
    with (
        locked(FeatureFolder(folder), is_shared=True),  # as other parts do
        pytest.raises(FeaturesError, match="another run is writing"),
    ):
        extract(manifest, folder, means)
    with locked(FeatureFolder(folder), is_shared=True):
        report = extract(manifest, folder, replace(means, part="2/2"))
    assert (report.num_frames, report.num_videos["ok"]) == (num_frames, len(clips))
    assert temporary.exists()  # it may be that of a part at work
    assert json.loads((folder / "report.json").read_text())["num_frames"] == num_frames
    assert len(list((folder / "plan").iterdir())) == 1
    extract(manifest, folder, replace(means, finish=True))
    assert not list(folder.rglob(".*"))
    store = open_features(folder)
    assert {name: len(store[name].features) for name in store} == CLIP_LENGTHS
    manifest.write_text(manifest.read_text() + "new,new.mp4,a,train\n")
    with pytest.raises(StoppedError, match="1 videos are in no plan yet, 'new'"):
        extract(manifest, folder, replace(means, finish=True))


@pytest.mark.parametrize("system", ["slurm", "pbs"])
@pytest.mark.parametrize("name", ["extract", "extract-array", "train"])
def test_templates_are_shell_with_directives(system: str, name: str) -> None:
    command = ["cluster", "template", name, "--system", system]
    text = CliRunner().invoke(cli, command, standalone_mode=False).stdout
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    marker = {"slurm": "#SBATCH ", "pbs": "#PBS "}[system]
    directives = [line for line in text.splitlines() if line.startswith(marker)]
    assert any("vtnpipe-" in line for line in directives)
    assert any("08:00:00" in line for line in directives)
    submit = {"slurm": "sbatch", "pbs": "qsub"}[system]
    assert f"{submit} {name}.{system}" in text
    array = {"slurm": "--array=1-4", "pbs": "-J 1-4"}[system]
    assert any(array in line for line in directives) == (name == "extract-array")
