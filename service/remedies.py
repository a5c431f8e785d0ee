"""What to do about a job's error, by its code."""

REMEDIES: dict[str, str] = {
    "CRASH_LOOP": "Retry it on another worker, or clone it with a smaller batch_size; report it if it fails again.",
    "CUT_OUT_OF_REACH": "Clone it with a lower ratio for the cut that the message names.",
    "DATA_UNUSABLE": "Correct the rows that the message names, upload the data set again and submit a job with it.",
    "DEVICE_NOT_AVAILABLE": "Clone it with device auto or cpu, or start a worker that has a GPU and retry it.",
    "DIVERGED": "Clone it with a lower learning_rate or a longer warm-up.",
    "ENGINE_CRASHED": "Retry it; if it crashes again, clone it with a smaller batch_size or on the other device.",
    "ENGINE_ERROR": "Look at the job's events and the worker's log, and report the job's id and request_id.",
    "ENGINE_KILLED": "Give the worker more memory, or clone it with a smaller batch_size or max_length.",
    "ENGINE_STOPPED": "Retry it; if it happens again, look for what ends processes on the worker's machine.",
    "EXPORT_FAILED": "Clone it with the export huggingface_custom or onnx.",
    "GPU_OUT_OF_MEMORY": "Clone it with a smaller batch_size or max_length, or run it on a larger GPU or the CPU.",
    "INPUT_CORRUPT": "Upload the model and the data set again and submit a job with them.",
    "INPUT_MISSING": "Upload the model and the data set again and submit a job with them.",
    "LABEL_UNKNOWN": "Upload rows that have only labels of the model's head, or train a new head with a baseline.",
    "MODEL_UNUSABLE": "Upload the model again, changed as the message says.",
    "NOT_FINITE": "Check the model's weights; if they are sound, clone the job with a lower learning_rate.",
    "NO_SPACE": "Make room on the worker's disk and in the storage, then retry it.",
    "OUT_OF_MEMORY": "Clone it with a smaller batch_size or max_length, or give the worker more memory.",
    "SANDBOX_ERROR": "Look at the worker's log, put its sandbox in order and retry the job.",
    "STORAGE_ERROR": "Retry it when the storage can be reached again.",
    "TARGET_OUT_OF_REACH": "Clone it with a milder target, or let it cut more structures.",
    "TIMEOUT": "Retry it to go on from its checkpoint, or clone it with a longer timeout.",
    "TOKENIZER_UNUSABLE": "Upload the model again with a tokenizer as the message asks for.",
    "VERIFICATION_FAILED": "Retry it; if it fails again, report the job's id and request_id.",
    "WORKER_ERROR": "Retry it; if it fails again, look at the worker's log.",
}


def remedy(code: str) -> str | None:
    """What to do, in one sentence; None for a code that is not known."""
    return REMEDIES.get(code)
