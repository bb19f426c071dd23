"""ONNX Runtime with a provider that comes as a package of its own: NVIDIA's plug-in for TensorRT-RTX.

The package holds the provider's library, which is registered once a process; the GPUs it offers are then chosen for a session.
It builds its engines itself when a session is made and compiles kernels at the first run, into the user's own cache. Tried up to
the registration, which needs a GPU's driver; not run by us yet.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from digseg_engine.contract import GraphSpec
from digseg_engine.errors import BackendError
from digseg_engine.runtime.backends import Usable, in_one_line
from digseg_engine.runtime.backends.devices import gpu_index
from digseg_engine.runtime.backends.ort_backend import (
    PLACES,
    PLUGINS,
    PROBE,
    check_places,
    install,
    opened_as_hashed,
    session_options,
)
from digseg_engine.runtime.backends.ort_gpu import OrtGpuBackend
from digseg_engine.runtime.backends.tensorrt_native import bundle_profile, model_sizes
from digseg_engine.runtime.private_cache import private_folder

if TYPE_CHECKING:
    from digseg_engine.bundle import Bundle
    from digseg_engine.runtime.source import Source

NAME = "onnxruntime-tensorrt-rtx"
PROVIDER = PLUGINS[NAME]
_registered: set[str] = set()
_registering = Lock()


def devices(runtime: Any, package: Any = None) -> list[Any]:
    """The GPUs that the plug-in offers. Raises BackendError when it is not installed, cannot be loaded or has none."""
    if not hasattr(runtime, "register_execution_provider_library"):
        raise BackendError(f"onnxruntime {runtime.__version__} takes no plug-ins; expected 1.24 or newer; update it")
    if package is None:
        try:
            package = import_module("onnxruntime_ep_nv_tensorrt_rtx")
        except ModuleNotFoundError as error:
            raise BackendError(f"the plug-in's package is not installed; {install(NAME)}") from error
        except (ImportError, OSError) as error:
            raise BackendError(f"the plug-in cannot be loaded: {in_one_line(error)}; {install(NAME)}") from error
    with _registering:
        path = str(package.get_library_path())
        if path not in _registered:
            try:
                runtime.register_execution_provider_library(PROVIDER, path)
            except Exception as error:
                why = in_one_line(error).rpartition("with error: ")[2]
                raise BackendError(f"onnxruntime cannot register {PROVIDER}: {why}; it needs an NVIDIA RTX GPU and its "
                                   "driver") from error  # fmt: skip
            _registered.add(path)
    found = [device for device in runtime.get_ep_devices() if device.ep_name == PROVIDER]
    if not found:
        raise BackendError(f"{PROVIDER} offers no device; it needs an NVIDIA RTX GPU and its driver")
    return found


def make_session(runtime: Any, model: Path | bytes, options: Any, device: Any, settings: dict[str, str]) -> Any:
    """A session on one device of the plug-in. Raises BackendError when it runs elsewhere, in whole or in part."""
    name = str(model) if isinstance(model, Path) else "a one-node graph"
    options.add_session_config_entry(PLACES, "1")
    options.add_provider_for_devices([device], settings)
    try:
        session = runtime.InferenceSession(str(model) if isinstance(model, Path) else model, options)
    except Exception as error:
        raise BackendError(
            f"onnxruntime cannot load {name} with {PROVIDER}: {in_one_line(error)}; update both packages"
        ) from error
    check_places(session, name, PROVIDER)
    return session


def probe() -> Usable:
    """Register the plug-in and create a session on a one-node graph."""
    try:
        import onnxruntime

        make_session(onnxruntime, PROBE, session_options(onnxruntime), devices(onnxruntime)[0], {})
    except ImportError as error:
        return Usable(NAME, False, "", f"not installed ({error})", install(NAME))
    except Exception as error:
        return Usable(NAME, False, "", in_one_line(error).removesuffix(f"; {install(NAME)}"), install(NAME))
    return Usable(NAME, True, f"onnxruntime {onnxruntime.__version__}, {PROVIDER}, not run by us yet")


class OrtPluginBackend(OrtGpuBackend):
    """As `OrtGpuBackend`, on the plug-in's GPU: the bundle's graphs as stored, for the bundle's shape profile."""

    def __init__(self, source: Source) -> None:
        self.index = gpu_index(source, NAME)
        super().__init__(source, NAME)
        self.detail = f"{self.detail}, GPU {self.index}"

    def _session(self, bundle: Bundle, spec: GraphSpec) -> Any:
        found = devices(self._runtime)
        if self.index >= len(found):
            raise BackendError(f"{PROVIDER} offers {len(found)} devices, and cuda:{self.index} was asked for")
        options = session_options(self._runtime, self._threads)
        return opened_as_hashed(bundle, spec.file, options, False, lambda model: make_session(
            self._runtime, model, options, found[self.index], settings(bundle, spec)))  # fmt: skip


def settings(bundle: Bundle, spec: GraphSpec) -> dict[str, str]:
    """Options of the provider for a graph: shapes of the bundle's profile, compiled kernels in the user's own cache."""
    profile, sizes = bundle_profile(bundle), model_sizes(bundle)
    shapes = {
        f"nv_profile_{end}_shapes": ",".join(
            f"{tensor.name}:{'x'.join(map(str, profile.shape(tensor.axes, end, sizes)))}" for tensor in spec.inputs
        )
        for end in ("min", "opt", "max")
    }
    return {**shapes, "nv_runtime_cache_path": str(private_folder(NAME, bundle.digest))}
