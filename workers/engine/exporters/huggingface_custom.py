"""A Hugging Face directory with our modelling file, for sizes that no stock config can express."""

import shutil
from pathlib import Path

from transformers import PreTrainedModel

from workers.engine import modeling_secateur
from workers.engine.exporters.folder import write_folder
from workers.engine.families.loading import stock_class
from workers.engine.modeling_secateur import PREFIX, differences, stock_twin
from workers.engine.tasks.task import Task


def export(network: PreTrainedModel, folder: Path, source: Path, task: type[Task]) -> None:
    """Writes `network` so that `from_pretrained(…, trust_remote_code=True)` loads it, whatever its sizes."""
    name = PREFIX + stock_class(network)
    config = {
        "architectures": [name],
        "auto_map": {task.auto: f"{Path(modeling_secateur.__file__).stem}.{name}"},
        "secateur_sizes": differences(network, stock_twin(network)),
    }
    ignored, network._keys_to_ignore_on_save = network._keys_to_ignore_on_save, None
    try:
        write_folder(network, folder, source, config)
    finally:
        network._keys_to_ignore_on_save = ignored
    shutil.copyfile(modeling_secateur.__file__, folder / Path(modeling_secateur.__file__).name)
