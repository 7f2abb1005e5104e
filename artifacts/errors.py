"""The errors ohlol raises on purpose. Each message names the thing, what was expected, what was found
and what to do; the command line prints it as it stands and turns it into an exit code."""

from __future__ import annotations


class OhlolError(Exception):
    """Base of all of them."""


class RecipeError(OhlolError):
    """A recipe has mistakes; the message lists every one."""


class DataError(OhlolError):
    """A data file cannot be read as the recipe says."""


class CheckpointError(OhlolError):
    """A run folder is missing, damaged or not one."""


class TrainingError(OhlolError):
    """Training cannot go on."""


class BundleError(OhlolError):
    """A bundle or `.onnx` file is missing, damaged, too new or not one of ours."""


class ProofError(OhlolError):
    """An exported file does not answer as the PyTorch network does."""


class AdoptError(OhlolError):
    """A model that others trained is not one of those that ohlol can hold, or its weights do not fit."""


class InputError(OhlolError):
    """A text to predict cannot be read."""


def printable(text: str, keep: str = "") -> str:
    """`text` with escapes for what has no glyph, but for `keep`: what a stranger's file says shall not steer a terminal."""
    return "".join(c if c.isprintable() or c in keep else f"\\u{ord(c):04x}" for c in text)
