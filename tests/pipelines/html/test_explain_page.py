"""Explanations: agreement of attention and drops, and the lines about them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from vtnpipe.extract.decode.frames import Outcome
from vtnpipe.pipelines.html.attention import Attention
from vtnpipe.pipelines.html.explain_page import Explanation, occlusion_lines

WEIGHTS = np.array([0.1, 0.4, 0.2, 0.3])


def _explanation(drops: list[float]) -> Explanation:
    frame_weights = np.stack([WEIGHTS[::-1], WEIGHTS])[:, None]  # [L, H, T]; the last layer counts
    attention = Attention(
        edges=np.arange(5) / 10,
        weights=frame_weights,
        cls_to_cls=np.zeros((2, 1)),
        frame_weights=frame_weights,
    )
    return Explanation(
        task="classification",
        class_names=["a", "b"],
        top_class=1,
        scores=torch.tensor([0.2, 0.8]),
        outcome=Outcome(status="ok"),
        timestamps=np.arange(4) / 10,
        frame_index=np.array([0, 2, 4, 6]),
        attention=attention,
        spans=[(n, n + 1) for n in range(4)],
        drops=np.array(drops),
    )


def test_agreement_is_the_rank_correlation_of_attention_and_drops() -> None:
    assert _explanation([1, 40, 2, 3]).agreement == pytest.approx(1)
    assert _explanation([4, 1, 3, 2]).agreement == pytest.approx(-1)
    explanation = _explanation([1, 1, 1, 1])
    assert explanation.agreement is None
    assert replace(explanation, attention=None).agreement is None
    few = replace(_explanation([1, 2, 3, 4]), spans=[(0, 2), (2, 4)], drops=np.array([1.0, 2.0]))
    assert few.agreement is None


def test_the_most_attended_frames_come_in_order_of_time() -> None:
    explanation = _explanation([0, 0, 0, 0])
    assert explanation.most_attended(2) == [(1, 0.4), (3, 0.3)]
    assert len(explanation.most_attended(9)) == 4
    assert replace(explanation, attention=None).most_attended(2) == []


def test_lines_name_the_frames_that_lower_the_score_most() -> None:
    largest, agreement = occlusion_lines(_explanation([0.5, 2.0, 0.1, 0.2]))
    assert "frame 2, from 0.10 s" in largest
    assert "log-odds of b" in largest
    assert largest.endswith("by 2")
    assert agreement.endswith(": 0.40")
    joined = replace(_explanation([0, 0, 0, 0]), spans=[(0, 3), (3, 4)], drops=np.array([1.0, 0.0]))
    assert "frames 0 to 4, from 0.00 s" in occlusion_lines(joined)[0]
    never = occlusion_lines(_explanation([-1, -2, -3, -4]))[0]
    assert "never lowers the log-odds of b" in never
    regression = replace(_explanation([0.5, 2.0, 0.1, 0.2]), task="regression")
    assert "the value" in occlusion_lines(regression)[0]
    assert len(occlusion_lines(replace(_explanation([1, 2, 3, 4]), attention=None))) == 2


def test_a_partial_video_has_exit_code_1() -> None:
    explanation = _explanation([0, 0, 0, 0])
    assert explanation.exit_code == 0
    partial = Outcome(status="partial", reason="truncated", message="x")
    assert replace(explanation, outcome=partial).exit_code == 1
