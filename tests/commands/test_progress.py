"""What long work says where its output is piped: before it begins, while it goes on, and never too late."""

import pytest

from digseg_engine import console
from digseg_engine.console import Pace, telling
from digseg_engine.evaluation.score import Request, score_model
from digseg_engine.training import stage_timer
from digseg_engine.training.stage_timer import StageTimer
from digseg_engine.worlds.pool import build_pool


def test_the_first_line_comes_before_the_work_and_the_next_with_the_time_left(monkeypatch, capsys):
    pace = Pace("scoring pictures", 3)
    assert capsys.readouterr().err == "digseg: scoring pictures (3)\n"
    pace()
    assert not capsys.readouterr().err  # no ten seconds have gone by
    monkeypatch.setattr(console, "SECONDS", 0.0)
    pace()
    assert capsys.readouterr().err == "digseg: scoring pictures: 2 of 3, about 0 s left\n"
    pace()
    assert not capsys.readouterr().err  # done: the result speaks


def test_training_says_again_and_again_how_long_it_takes(monkeypatch, capsys):
    monkeypatch.setattr(stage_timer, "FIRST", 0.0)
    told = StageTimer("student", 0, 9, 60, True)
    for done in range(1, 10):
        told.tell(done)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"student: step {n} of 9" for n in (5, 6, 7, 8)]


def test_scores_and_painted_pictures_are_announced(nano_models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(console, "SECONDS", 0.0)
    score_model(Request(nano_models.checkpoint, "scenes:crops", 2))
    assert "digseg: scoring crops (2)\n" in capsys.readouterr().err
    build_pool("crops", 2, 32, tmp_path, workers=1)
    assert "painting scenes of crops" in capsys.readouterr().err


def test_a_long_step_of_an_export_is_said_again(monkeypatch, capsys):
    from digseg_export import progress

    monkeypatch.setattr(progress, "STILL", 0.01)
    said = []
    monkeypatch.setattr(progress._Lines, "_say", lambda lines, text: (said.append(text), len(said) > 3 and lines.end()))
    lines = progress._Lines()
    lines("trace graphs")
    lines("trace graphs: the decoder (2 of 3)")
    lines.repeat()
    assert said == ["trace graphs", *["trace graphs, still at it: the decoder (2 of 3)"] * 3]


@pytest.mark.parametrize("quiet", [True, False])
def test_what_the_engine_logs_while_it_measures_is_shown(capsys, quiet):
    import logging

    with telling(quiet):
        logging.getLogger("digseg_engine").info("choosing a backend")
    logging.getLogger("digseg_engine").info("afterwards")
    assert capsys.readouterr().err == ("" if quiet else "digseg: choosing a backend\n")
