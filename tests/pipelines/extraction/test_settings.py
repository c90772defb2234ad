"""Settings of `vtnpipe extract`: which go together, and which are recorded with the features."""

import re
from typing import Any, get_args

import pytest
from vtnpipe.manifests.errors import SettingsError
from vtnpipe.manifests.failures import Reason
from vtnpipe.pipelines.extraction.settings import ExtractSettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"part": "0/3"}, "--part '0/3': it must be I/N"),
        ({"part": "4/3"}, "--part '4/3': it must be I/N"),
        ({"part": "1/3", "finish": True}, "--part 1/3 with --finish"),
        ({"part": "1/3", "cluster": "slurm"}, "a part runs on its own machine"),
        ({"part": "1/3", "scheduler": "tcp://a:1"}, "a part runs on its own machine"),
        ({"max_failures": "101%"}, "--max-failures '101%': it must be a number, as 100, or"),
        ({"retry": "broken"}, "--retry 'broken': it must be of missing,"),
        ({"shard_frames": "0"}, "--shard-frames '0': it must be auto or a whole number"),
        ({"fps": 5.0, "frame_stride": 2}, "leave out one of the two"),
        ({"jobs": 4}, "--jobs 4: needs --cluster"),  # as in ClusterSettings
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        ExtractSettings(**settings)


def test_values_that_settings_stand_for() -> None:
    assert ExtractSettings(part="2/5").part_of == (1, 5)
    assert ExtractSettings().part_of == (0, 1)
    assert ExtractSettings().reasons_to_retry == frozenset()
    assert ExtractSettings(retry="stalled,crashed").reasons_to_retry == {"stalled", "crashed"}
    assert ExtractSettings(retry="all").reasons_to_retry == {*get_args(Reason)}
    assert len(get_args(Reason)) == 15
    limits = ExtractSettings(stall_seconds=7, max_megapixels=0.25).limits
    assert (limits.stall_seconds, limits.max_pixels) == (7, 250_000)
    assert [ExtractSettings(decoder=one).may_cut for one in ("auto", "pyav", "decord")] == [
        *(True, True, False),
    ]


def test_features_record_neither_their_jobs_nor_the_options_of_one_run() -> None:
    job = {"job_script_prologue": ["export TOKEN=secret"]}
    settings = ExtractSettings(cluster="slurm", job=job, jobs=3, retry="all", max_failures="7")
    assert "secret" not in str(settings.record)
    assert {"backbone", "workers", "device"} <= settings.record.keys()
    left_out = {"cluster", "scheduler", "jobs", "tls", "job", "part", "finish", "retry"}
    assert not left_out & settings.record.keys()
