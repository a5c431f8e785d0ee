"""Which files of a model directory are kept, which are dropped, and which refuse the whole upload, and why."""

import re
from pathlib import PurePosixPath

from service.errors import Invalid
from service.intake.names import shown

SENTENCEPIECE_FILES = frozenset(
    "sentencepiece.bpe.model spiece.model spm.model tokenizer.model source.spm target.spm".split()
)
VOCABULARY_FILES = frozenset("vocab.json target_vocab.json added_tokens.json".split())
TEXT_FILES = frozenset({"vocab.txt", "merges.txt", "chat_template.jinja"})
"""The last is a program for whoever chats with the model; nothing here ever renders it."""
TOKENIZER_FILES = (
    frozenset("tokenizer.json tokenizer_config.json special_tokens_map.json".split())
    | SENTENCEPIECE_FILES
    | VOCABULARY_FILES
    | TEXT_FILES
)
INERT_FILES = frozenset(
    """generation_config.json modules.json 1_Pooling/config.json sentence_bert_config.json
    config_sentence_transformers.json""".split()
)
INDEX = "model.safetensors.index.json"
KEPT_FILES = TOKENIZER_FILES | INERT_FILES | {"config.json", INDEX}

_REASONS = {
    "PICKLE_REFUSED": "is a pickle, whose loading can run any code; save the model with safe_serialization=True and "
    "leave such files out, training state too",
    "TORCHSCRIPT_REFUSED": "is TorchScript, whose loading can run any code; save the model as safetensors",
    "GRAPH_REFUSED": "is an exported PyTorch graph, whose loading can run any code; save the model as safetensors",
    "HDF5_REFUSED": "is HDF5, which is not read here; save the model as safetensors",
    "KERAS_REFUSED": "is a Keras archive, which is not read here yet; save the model as safetensors",
    "GGUF_REFUSED": "is GGUF, which is not read here; save the model as safetensors",
    "ADAPTER_REFUSED": "belongs to an adapter; merge it into its base model and upload that",
    "REMOTE_CODE_REFUSED": "is code, and uploaded code is never run; leave it out",
}
_BY_SUFFIX = {
    "PICKLE_REFUSED": ".bin .pt .pth .ckpt .pkl .pickle .joblib .dill .ot",
    "GRAPH_REFUSED": ".pt2",
    "HDF5_REFUSED": ".h5 .hdf5",
    "KERAS_REFUSED": ".keras",
    "GGUF_REFUSED": ".gguf .ggml",
    "REMOTE_CODE_REFUSED": ".py .pyc .pyd .so",
}
_CODES = {suffix: code for code, suffixes in _BY_SUFFIX.items() for suffix in suffixes.split()}
_PICKLE = re.compile(rb"\x80[\x02-\x05][\x8a\x8c\x95()}\]cX]")
_OTHER_RUNTIMES = frozenset({"onnx", "openvino", "__MACOSX"})


def refusal(code: str, name: str) -> Invalid:
    """The refusal of a file, by the code of its cause."""
    return Invalid(f"The file {shown(name)} {_REASONS[code]}.", code=code)


def admit(name: str, head: bytes) -> bool:
    """Whether a member is kept: by its content first, then by its name. Raises `Invalid` to refuse the upload."""
    path = PurePosixPath(name)
    code = _by_content(head) or _by_name(path)
    if code:
        raise refusal(code, name)
    return any(is_kept(relative) for relative in (name, name.partition("/")[2]))


def is_kept(relative: str) -> bool:
    """Whether a file of a model directory, named relative to it, is one that the service stores."""
    return relative in KEPT_FILES or ("/" not in relative and relative.endswith(".safetensors"))


def _by_name(path: PurePosixPath) -> str | None:
    if path.name.startswith("adapter_"):
        return "ADAPTER_REFUSED"
    if _OTHER_RUNTIMES.intersection(path.parts[:-1]) or path.name.startswith("._"):
        return None  # openvino/*.bin are plain weights; nothing here is kept anyway
    return _CODES.get(path.suffix.lower())


def _by_content(head: bytes) -> str | None:
    if _PICKLE.match(head):
        return "PICKLE_REFUSED"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "HDF5_REFUSED"
    if head.startswith(b"GGUF"):
        return "GGUF_REFUSED"
    if head.startswith(b"PK\x03\x04"):
        if b"/constants.pkl" in head or b"/code/__torch__" in head:
            return "TORCHSCRIPT_REFUSED"
        if b"/data.pkl" in head:
            return "PICKLE_REFUSED"
    return None


def check_not_torch(names: list[str]) -> None:
    """Raises `Invalid` when the upload itself, not a file in it, is what `torch.save` or `torch.jit.save` write."""
    bases = {PurePosixPath(name).name for name in names}
    if "constants.pkl" in bases:
        raise Invalid("The upload " + _REASONS["TORCHSCRIPT_REFUSED"] + ".", code="TORCHSCRIPT_REFUSED")
    if "data.pkl" in bases:
        raise Invalid("The upload " + _REASONS["PICKLE_REFUSED"] + ".", code="PICKLE_REFUSED")
