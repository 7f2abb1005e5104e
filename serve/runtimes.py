"""The runtimes that can run an ONNX file on this machine: ONNX Runtime, and OpenVINO where it is installed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from ohlol.artifacts.errors import BundleError, InputError, OhlolError
from ohlol.artifacts.onnx_file import check_whole

# Inputs by name to outputs by name.
Run = Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]

RUNTIMES = ("onnxruntime", "openvino")
MOST_THREADS = 1_024


def installed() -> list[str]:
    """The names of the runtimes that can be used here."""
    return [name for name in RUNTIMES if find_spec(name)]


def runtime_version(name: str) -> str:
    from importlib.metadata import version  # late: it costs a tenth of a small answer's time

    return version(name)


def cpus() -> int:
    """CPUs that this process may use: of the machine's, those it is bound to, and what its container has."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(bound, _quota(Path("/sys/fs/cgroup")) or bound))


def _quota(cgroup: Path) -> int | None:
    """CPUs that a container's control group (version 2, or 1) allows, rounded up; None: no limit."""
    try:
        if (cgroup / "cpu.max").is_file():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        return max(1, -(-int(quota) // int(period))) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # "max", or no control groups here
        return None


def run_in(runtime: str, onnx: bytes, where: str, *, threads: int = 1) -> Run:
    """`onnx`, the bytes of a file that `where` names, ready to run in float32.

    Raises `OhlolError` where the runtime is unknown or not installed, `BundleError` where it cannot open the
    file.
    """
    if runtime not in RUNTIMES:
        raise OhlolError(f"runtime {runtime!r}: expected one of {', '.join(RUNTIMES)}")
    if not find_spec(runtime):
        raise OhlolError(f"runtime {runtime!r} is not installed: pip install {runtime}")
    check_whole(onnx, where)
    return (_in_openvino if runtime == "openvino" else _in_onnxruntime)(onnx, where, threads)


def session(onnx: bytes, where: str, threads: int = 1) -> onnxruntime.InferenceSession:
    """A session of ONNX Runtime. Raises `BundleError` where it cannot open the file."""
    if not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
        raise InputError(f"threads is {threads!r}, expected a whole number from 1 to {MOST_THREADS}")
    check_whole(onnx, where)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors come as exceptions; its warnings are not for our users
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # With a fallback, it would print to stdout, where answers go.
        opened = onnxruntime.InferenceSession(
            onnx, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        for tensor in (*opened.get_inputs(), *opened.get_outputs()):
            _ = tensor.name, tensor.type, tensor.shape  # raises where one is no text
        return opened
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise _cannot_open(f"ONNX Runtime {onnxruntime.__version__}", where, error) from error


def run(
    opened: onnxruntime.InferenceSession, names: Sequence[str], feed: dict[str, NDArray[Any]]
) -> list[NDArray[Any]]:
    """The outputs `names`. Raises `BundleError` where the file cannot answer what its contract allows."""
    try:
        answers: list[NDArray[Any]] = opened.run(names, feed)
    except Exception as error:
        raise _cannot_answer(f"ONNX Runtime {onnxruntime.__version__}", error) from error
    return answers


def _in_onnxruntime(onnx: bytes, where: str, threads: int) -> Run:
    opened = session(onnx, where, threads)
    names = [output.name for output in opened.get_outputs()]
    return lambda feed: dict(zip(names, run(opened, names, feed), strict=True))


def _in_openvino(onnx: bytes, where: str, threads: int) -> Run:
    openvino: Any = import_module("openvino")
    # Without the first it may compute in bfloat16, which moves recurrent models by tenths.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    try:
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(onnx), "CPU", settings)
    except Exception as error:  # whatever its C++ raises
        raise _cannot_open(f"OpenVINO {runtime_version('openvino')}", where, error) from error
    request = compiled.create_infer_request()
    outputs = [list(output.names) for output in compiled.outputs]  # an output may have several names there

    def run(feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            request.infer(feed)
        except Exception as error:
            raise _cannot_answer(f"OpenVINO {runtime_version('openvino')}", error) from error
        return {
            name: request.get_output_tensor(k).data.copy()
            for k, names in enumerate(outputs)
            for name in names
        }

    return run


def _cannot_open(runtime: str, where: str, error: Exception) -> BundleError:
    return BundleError(f"{where}: {runtime} cannot open it ({_reason(error)}); export it again")


def _cannot_answer(runtime: str, error: Exception) -> BundleError:
    return BundleError(f"{runtime} cannot run the model ({_reason(error)}); it is damaged, export it again")


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
