"""What the runtime takes of a machine: cores within a container's quota, threads and device as asked, no telemetry."""

import os
import sys

import pytest
from programs import run_program

from digseg_engine import Engine
from digseg_engine.errors import UsageError
from digseg_engine.runtime import choice, machine
from digseg_engine.runtime.choice import Task
from digseg_engine.runtime.machine import cpu_quota
from digseg_engine.runtime.source import open_source


def groups(root, membership, files):
    """A made-up /proc/self/cgroup and /sys/fs/cgroup under `root`."""
    for name, text in {"proc/self/cgroup": membership, **{f"sys/fs/cgroup/{n}": t for n, t in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


V1 = "7:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n0::/"


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, 2),  # version 2, in a container
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {"cpu.max": "150000 100000"}, 1),
        ("0::/", {"cpu.max": "50000 100000"}, 1),  # half a core is one thread
        ("0::/", {"cpu.max": "nonsense"}, None),
        ("0::/", {}, None),
        ("0::/pod/box", {"pod/cpu.max": "300000 100000", "pod/box/cpu.max": "max 100000"}, 3),  # the pod's holds too
        ("0::/pod/box", {"pod/cpu.max": "300000 100000", "pod/box/cpu.max": "400000 200000"}, 2),
        ("0::/not/seen/here", {"cpu.max": "400000 100000"}, 4),
        ("0::/box", {"unified/box/cpu.max": "500000 100000"}, 5),  # both versions side by side
        (V1, {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "300000", "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"}, 3),
        (V1, {"cpu/cpu.cfs_quota_us": "60000", "cpu/cpu.cfs_period_us": "20000"}, 3),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("9:cpuset:/", {"cpuset/cpu.cfs_quota_us": "100000", "cpuset/cpu.cfs_period_us": "100000"}, None),
    ],
)  # fmt: skip
def test_a_quota_in_whole_cores(tmp_path, membership, files, cores):
    assert cpu_quota(groups(tmp_path, membership, files)) == cores


def test_no_control_groups_no_quota(tmp_path):
    assert cpu_quota(tmp_path) is None


def test_cores_are_those_the_quota_pays_for(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda of: set(range(16)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    for quota, cores, asked in ((None, 16, 0), (3, 3, 3), (40, 16, 0)):
        monkeypatch.setattr(machine, "cpu_quota", lambda quota=quota: quota)
        assert (machine.cores(), machine.cores_if_bound()) == (cores, asked)


def run(code, **environment):
    done = run_program([sys.executable, "-c", code], env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


COUNT = """
import os
from digseg_engine import Engine
before = len(os.listdir("/proc/self/task"))
engine = Engine.load({folder!r}, {backend!r}, threads={threads})
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux lists them")
def test_onnxruntime_starts_as_many_threads_as_asked(nano_models):
    one, five = (
        int(run(COUNT.format(folder=str(nano_models.fp32), backend="onnxruntime", threads=n))[0]) for n in (1, 5)
    )
    assert five - one == 3 * 4  # of each of three sessions, which run in turn; the caller's own thread is the first


def test_torch_takes_as_many_threads_as_asked(nano_models):
    code = ("import torch; from digseg_engine import Engine; "
            "Engine.load({!r}, 'torch', threads={}); print(torch.get_num_threads())")  # fmt: skip
    assert run(code.format(str(nano_models.checkpoint), 3)) == ["3"]


def test_torch_takes_no_more_threads_than_the_quota_pays_for(nano_models):
    code = (
        "import torch; torch.set_num_threads(4)\n"
        "from digseg_engine.runtime import machine; machine.cpu_quota = lambda: 1\n"
        f"from digseg_engine import Engine; Engine.load({str(nano_models.checkpoint)!r}, 'torch')\n"
        "print(torch.get_num_threads())"
    )
    assert run(code) == ["1"]


def test_threads_and_devices_that_do_not_exist(nano_models):
    for threads in (0, -1, 1.5, True, "2"):
        with pytest.raises(UsageError, match="threads must be a whole number"):
            Engine.load(nano_models.fp32, threads=threads)
    for device in ("xpu", "cuda:", "cuda:x", "npu:1", "", 1):
        with pytest.raises(UsageError, match="unknown device"):
            Engine.load(nano_models.fp32, device=device)


def test_the_source_carries_threads_and_device(nano_models):
    engine = Engine.load(nano_models.fp32, "onnxruntime", threads=1, device="cpu")
    assert (engine.source.threads, engine.source.device) == (1, "cpu")


def test_another_number_of_threads_or_device_is_another_verdict(nano_models):
    from dataclasses import replace

    source = open_source(nano_models.fp32)
    sources = (source, replace(source, threads=1), replace(source, threads=2), replace(source, device="cpu"))
    assert len({choice.verdict_key(one, Task(64)) for one in sources}) == 4


OPENED = (
    "import os; from digseg_engine import Engine; Engine.load({folder!r}); print(os.environ['ORT_DISABLE_TELEMETRY'])"
)


def test_nothing_is_left_in_the_home_and_telemetry_is_off(nano_models, tmp_path):
    """From 1.29 on ONNX Runtime writes a device id under the user's cache as soon as it is opened."""
    about = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    os.environ.pop("ORT_DISABLE_TELEMETRY", None)
    assert run(OPENED.format(folder=str(nano_models.fp32)), **about) == ["1"]
    assert run("import digseg_export.ranges, os; print(os.environ['ORT_DISABLE_TELEMETRY'])", **about) == ["1"]
    assert list(tmp_path.rglob("*")) == []
    wished = run(OPENED.format(folder=str(nano_models.fp32)), **about, ORT_DISABLE_TELEMETRY="0")
    assert wished == ["0"]  # who sets the variable decides
