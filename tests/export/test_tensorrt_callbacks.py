"""What the builder hands to TensorRT to be called back: progress and log. Ctrl-C never goes through the library's frames."""

import os
import signal

import pytest
from tensorrt_standin import standin

from digseg_engine.runtime.backends.tensorrt_native import logger_of
from digseg_export.plan_builder import make_monitor, postponed


def test_progress_is_said_and_what_it_raises_ends_the_build():
    trt, said = standin("10.3.0"), []
    monitor = make_monitor(trt, said.append)
    monitor.phase_start("Tactics", None, 4)
    assert monitor.step_complete("Tactics", 0) is True and said == ["Tactics 1/4"]
    monitor.asked_to_stop = lambda: True
    assert monitor.step_complete("Tactics", 1) is False and monitor.stopped is None
    monitor.phase_finish("Tactics")

    def broken(text):
        raise BrokenPipeError

    monitor = make_monitor(trt, broken)
    assert monitor.step_complete("x", 0) is False and isinstance(monitor.stopped, BrokenPipeError)


def interrupted(done):
    """A build during which Ctrl-C is pressed."""
    with postponed() as asked_to_stop:
        assert not asked_to_stop()
        os.kill(os.getpid(), signal.SIGINT)
        done.append(asked_to_stop())


@pytest.fixture
def usual_ctrl_c():
    """Python's own handler, whatever an earlier test left in this process: with the system's, the signal would end it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before or signal.default_int_handler)


def test_ctrl_c_waits_for_the_end_of_a_build(usual_ctrl_c):
    done = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(done)
    assert done == [True] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_log_keeps_errors_and_warnings_apart():
    trt = standin("10.3.0")
    logger = logger_of(trt, keep=2)
    for severity, text in ((1, "a"), (2, "b"), (3, "c"), (0, "d"), (1, "e")):
        logger.log(trt.ILogger.Severity(severity), text)
    assert list(logger.errors) == ["d", "e"] and logger.warnings == ["b"]
    assert logger_of(trt) is logger and not logger.errors and not logger.warnings  # one for the process, emptied
    assert logger_of(standin("10.3.0")) is not logger
