"""A Hugging Face directory with our modelling file, for sizes that differ from layer to layer."""

import shutil
from pathlib import Path

from transformers import PreTrainedModel

from workers.engine import modeling_secateur
from workers.engine.exporters.folder import write_folder
from workers.engine.families import structure_of


def export(network: PreTrainedModel, folder: Path, source: Path) -> None:
    """Writes `network` so that `from_pretrained(…, trust_remote_code=True)` loads it, whatever its sizes."""
    name = modeling_secateur.CLASSES[network.config.model_type].__name__
    structure = structure_of(network)
    config = {
        "architectures": [name],
        "auto_map": {"AutoModelForSequenceClassification": f"modeling_secateur.{name}"},
        "secateur_structure": {key: structure[key] for key in ("attention_heads", "head_size", "ffn_width")},
    }
    write_folder(network, folder, source, config)
    shutil.copyfile(Path(modeling_secateur.__file__), folder / "modeling_secateur.py")
