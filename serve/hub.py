"""A folder as the Hugging Face Hub has them, which is a bundle still."""

from __future__ import annotations

import json
from typing import Any

from ohlol.artifacts.bundle import Bundle, Layout
from ohlol.artifacts.contract import Task
from ohlol.artifacts.manifest import Manifest
from ohlol.serve.yaml import dump

PIPELINES: dict[Task, str] = {
    "tag": "token-classification",
    "classify": "text-classification",
    "lm": "text-generation",
}
# `-text`: git must not touch a line's end in files whose digests are checked. The large ones go to LFS.
ATTRIBUTES = "* -text\n" + "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in ("onnx", "pt", "pt2")
)
USE = """## From the Hub

```python
import ohlol
from huggingface_hub import snapshot_download

model = ohlol.load(snapshot_download("OWNER/NAME", local_dir="model"))
print(model("a text"))
```

With `local_dir`: the Hub's cache holds links that lead out of the folder, which ohlol refuses.
"""


def folder(bundle: Bundle, name: str) -> dict[str, bytes]:
    """The files by name.

    The manifest lists all of the bundle's but the card: people edit a card where it is shown, and a digest would
    refuse the model from then on.
    """
    manifest = bundle.manifest
    card = bundle.contents.get(Layout.card, b"").decode("utf-8")
    head = dump(front_matter(manifest, name))
    files = {file: content for file, content in bundle.contents.items() if file != Layout.card}
    listed = manifest.with_files({file: manifest.files[file] for file in files})
    return files | {
        Layout.manifest: listed.to_json().encode(),
        Layout.card: f"---\n{head}---\n\n{card.rstrip()}\n\n{USE}".encode(),
        "config.json": (json.dumps(config(manifest), ensure_ascii=False, indent=2) + "\n").encode(),
        ".gitattributes": ATTRIBUTES.encode(),
    }


def front_matter(manifest: Manifest, name: str) -> dict[str, Any]:
    """The card's metadata. It says no licence and no language: nobody told us."""
    network = manifest.network
    tags = ["onnx", "character-level", str(network.get("cell", "")), manifest.task]
    found: dict[str, Any] = {
        "library_name": "ohlol",
        "pipeline_tag": PIPELINES[manifest.task],
        "tags": [tag for tag in tags if tag],
    }
    results = [_result(manifest, split, metrics) for split, metrics in manifest.metrics.items() if metrics]
    return found | ({"model-index": [{"name": name, "results": results}]} if results else {})


def _result(manifest: Manifest, split: str, metrics: dict[str, float]) -> dict[str, Any]:
    """What was measured on one split. The Hub wants a data set's name: it is the file's, which the manifest has."""
    data = manifest.provenance.get("data", {}).get(split, {})
    path = data.get("path") if isinstance(data, dict) else None
    return {
        "task": {"type": PIPELINES[manifest.task]},
        "dataset": {"name": str(path or f"the recipe's {split} data"), "type": "local", "split": split},
        "metrics": [
            {"type": key, "name": key.replace("_", " "), "value": value} for key, value in metrics.items()
        ],
    }


def config(manifest: Manifest) -> dict[str, Any]:
    """`config.json`: the file by which the Hub counts downloads, with the labels under the names usual there."""
    return {
        "model_type": "ohlol",
        "task": manifest.task,
        "network": manifest.network,
        "normalisation": manifest.alphabet.normalisation,
        "id2label": {str(number): label for number, label in enumerate(manifest.labels)},
        "label2id": {label: number for number, label in enumerate(manifest.labels)},
    }
