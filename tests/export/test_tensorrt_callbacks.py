"""What the builder hands to TensorRT to be called back: progress and errors."""

from tensorrt_standin import standin

from digseg_export import to_tensorrt


def test_the_progress_monitor_and_the_error_recorder_answer_tensorrt():
    trt, said = standin("10.3.0"), []
    monitor = to_tensorrt.make_monitor(trt, said.append)
    monitor.phase_start("Tactics", None, 4)
    assert monitor.step_complete("Tactics", 0) is True and said == ["Tactics 1/4"]
    monitor.phase_finish("Tactics")

    def interrupted(text):
        raise KeyboardInterrupt

    assert to_tensorrt.make_monitor(trt, interrupted).step_complete("x", 0) is False
    recorder = to_tensorrt.make_recorder(trt)
    recorder.report_error(3, "no memory")
    assert recorder.num_errors() == 1 and recorder.get_error_desc(0) == "no memory" and recorder.get_error_code(0) == 3
    recorder.clear()
    assert recorder.num_errors() == 0 and not recorder.has_overflowed()
