"""Opening an ONNX file: a session, only if the file is what its bundle says it is."""

from __future__ import annotations

from collections.abc import Mapping

from onnxruntime import InferenceSession

from ohlol.artifacts import contract
from ohlol.artifacts.bundle import Layout
from ohlol.artifacts.contract import Kind
from ohlol.artifacts.errors import BundleError
from ohlol.artifacts.files import sha256
from ohlol.artifacts.manifest import Manifest
from ohlol.artifacts.onnx_file import check_digest, metadata
from ohlol.serve.runtimes import session

DTYPES = {"tensor(int32)": "int32", "tensor(float)": "float32", "tensor(string)": "string"}


def read_manifest(onnx: bytes, where: str) -> tuple[Manifest, Kind]:
    """The facts inside an `.onnx` file, checked against its digest, and its kind. Raises `BundleError`."""
    facts = metadata(onnx, where)
    manifest = Manifest.from_metadata(facts, where)
    check_digest(onnx, facts, where)
    opened = session(onnx, where)
    names = {tensor.name for tensor in opened.get_inputs()}
    kinds = (kind for kind in contract.KINDS if {t.name for t in contract.inputs(kind)} == names)
    return manifest, next(kinds, "model")


def check_file(onnx: bytes, kind: Kind, manifest: Manifest, where: str) -> None:
    """Raise `BundleError` where a file of a bundle is of another kind, damaged, or says other facts."""
    inside, found = read_manifest(onnx, where)
    if found != kind:
        raise BundleError(f"{where}: it is the {found} file of a bundle, expected {kind}; export it again")
    if name := manifest.differs(inside, kind):
        raise BundleError(f"{where}: `{name}` differs from the manifest's; copy or export the bundle again")


def checked_session(
    onnx: bytes, kind: Kind, manifest: Manifest, where: str, threads: int = 1
) -> InferenceSession:
    """A session of a file of `kind`. Raises `BundleError` where its digest, contract or facts are not right."""
    facts = metadata(onnx, where)
    check_digest(onnx, facts, where)
    opened = session(onnx, where, threads)
    _check_contract(opened, kind, manifest, where)
    _check_facts(Manifest.from_metadata(facts, where), kind, manifest, where)
    return opened


def digest_of(manifest: Manifest, files: Mapping[str, bytes]) -> str:
    """A sha256 of the manifest and of the files that answer texts, lower-case hex.

    A bundle's manifest lists the digests of its files; the one inside a single file cannot.
    """
    used = [name for name in (Layout.onnx, Layout.batch, Layout.stream) if name in files]
    listed = manifest.files
    digests = [listed[name].sha256 if name in listed else sha256(files[name]) for name in used]
    return sha256("\n".join([*digests, manifest.to_json()]).encode("utf-8", "surrogatepass"))


def _check_contract(session: InferenceSession, file: Kind, manifest: Manifest, where: str) -> None:
    inputs = {tensor.name for tensor in session.get_inputs()}
    for other in contract.KINDS:
        if other != file and inputs == {tensor.name for tensor in contract.inputs(other)}:
            raise BundleError(
                f"{where}: takes {' and '.join(sorted(inputs))}: it is the {other} file of a bundle; load the "
                f"bundle, or the {Layout.onnx} beside it"
            )
    for kind, expected, found in (
        ("input", contract.inputs(file), session.get_inputs()),
        ("output", contract.outputs(manifest.task, file), session.get_outputs()),
    ):
        have = {tensor.name: tensor for tensor in found}
        for tensor in expected:
            if tensor.name not in have:
                names = ", ".join(have) or "none"
                raise BundleError(f"{where}: no {kind} `{tensor.name}`, found {names}; export it again")
            dtype = DTYPES.get(have[tensor.name].type, have[tensor.name].type)
            shape = manifest.shape(tensor)
            if dtype != tensor.dtype or have[tensor.name].shape != shape:
                raise BundleError(
                    f"{where}: {kind} `{tensor.name}` is {dtype} {have[tensor.name].shape}, expected {tensor.dtype} "
                    f"{shape}; export it again with `ohlol export`"
                )


def _check_facts(inside: Manifest, kind: Kind, manifest: Manifest, where: str) -> None:
    """The facts inside the file must be those of the manifest: no digest covers the manifest itself."""
    if name := manifest.differs(inside, kind):
        raise BundleError(
            f"{where}: `{name}` differs between the manifest and the model's own metadata, so one of the two was "
            "changed; copy or export the bundle again"
        )
