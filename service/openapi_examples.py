"""One example of every body, for the OpenAPI document; each is valid by the schema that it belongs to."""

from typing import Any

_AT, _LATER = "2026-01-31T12:00:00Z", "2026-01-31T12:21:40Z"
_MODEL, _PRUNED = "mdl_01KG9W4Z3N8V7Q2D5T6R1Y0XEA", "mdl_01KG9XB2M4C6P8S0V2Y4B6E8HK"
_DATASET, _JOB = "ds_01KG9W5A7C9E1G3J5M7P9R1TVX", "job_01KG9W6H8K0N2Q4S6V8Y0B2D4F"
_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

_CUTS: list[dict[str, Any]] = [
    {"structure": "attention_heads", "ratio": 0.5, "scope": "global", "criterion": {"kind": "taylor"}},
    {"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "taylor"}},
]
_SPEC: dict[str, Any] = {
    "version": 1,
    "name": "support-intents-half-latency",
    "metadata": {"team": "search"},
    "model_id": _MODEL,
    "dataset_id": _DATASET,
    "task": "text-classification",
    "pruning": {"cuts": _CUTS},
    "finetuning": {"epochs": 2, "learning_rate": 5e-5, "batch_size": 32, "distillation": {}},
    "acceptance": [{"metric": "accuracy", "max_drop": 0.01}, {"metric": "latency", "min_speedup": 1.5}],
    "exports": ["huggingface_custom", "onnx"],
    "benchmark": {"batch_sizes": [1, 8], "sequence_length": 128, "threads": 1},
}


def _structure(heads: int, neurons: int) -> dict[str, Any]:
    return {
        "layers": 6,
        "hidden_size": 384,
        "attention_heads": [heads] * 6,
        "ffn_width": [neurons] * 6,
        "vocabulary": 30522,
    }


def _measurement(accuracy: float, parameters: int, flops: int, p50: float, structure: dict[str, Any]) -> dict[str, Any]:
    latency = {"runtime": "onnxruntime", "batch_size": 1, "sequence_length": 128, "p50": p50, "p95": p50 * 1.05}
    return {
        "metrics": {"accuracy": {"value": accuracy, "low": accuracy - 0.014, "high": accuracy + 0.014}},
        "parameters": parameters,
        "nonzero_parameters": parameters,
        "size": 4 * parameters,
        "flops": flops,
        "peak_memory": 412_000_000,
        "latency": [latency],
        "structure": structure,
    }


_JOB_DONE: dict[str, Any] = {
    "id": _JOB,
    "object": "job",
    "kind": "compression",
    "name": _SPEC["name"],
    "metadata": _SPEC["metadata"],
    "status": "succeeded",
    "phase": None,
    "spec": _SPEC,
    "configuration": _SPEC | {"seed": 0, "priority": 0, "timeout": 86400},
    "progress": {"fraction": 1.0, "step": 0, "total_steps": None, "seconds_remaining": 0},
    "queue": {"position": None},
    "attempts": [
        {"number": 1, "worker": "gpu-1:4711", "started_at": _AT, "finished_at": _LATER, "outcome": "succeeded"}
    ],
    "warnings": [],
    "result": {
        "model_id": _PRUNED,
        "verdict": [
            {"metric": "accuracy", "goal": {"max_drop": 0.01}, "measured": 0.004, "passed": True},
            {"metric": "latency", "goal": {"min_speedup": 1.5}, "measured": 2.1, "passed": True},
        ],
        "before": _measurement(0.913, 22_713_216, 2_900_000_000, 0.0159, _structure(12, 1536)),
        "after": _measurement(0.909, 17_400_000, 1_450_000_000, 0.0076, _structure(6, 768)),
        "report_url": f"https://secateur.example/v1/jobs/{_JOB}/report",
        "engine": {
            "device": "NVIDIA H100",
            "peak_memory": 1_900_000_000,
            "seconds": {"loading": 2.1, "finetuning": 610.0},
            "versions": {"torch": "2.13.0", "transformers": "5.24.0"},
        },
    },
    "inspection": None,
    "error": None,
    "created_at": _AT,
    "started_at": _AT,
    "finished_at": _LATER,
    "links": {"self": f"https://secateur.example/v1/jobs/{_JOB}"},
}
_EVENT = {"id": "evt_01KG9W6H8M3P5R7T9W1Z3B5D7F", "time": _AT, "type": "job.started", "message": "Attempt 1 started."}
_KEY = {
    "id": "key_01KG9W1A2B3C4D5E6F7G8H9JKM",
    "object": "key",
    "name": "nightly-pipeline",
    "scopes": ["read", "write"],
    "created_at": _AT,
    "expires_at": "2026-07-31T12:00:00Z",
    "last_used_at": None,
    "revoked_at": None,
}
_ENDPOINT = {
    "id": "whe_01KG9W2C4E6G8J0M2P4R6T8VXZ",
    "object": "webhook_endpoint",
    "url": "https://pipelines.example/hooks/secateur",
    "events": ["job.succeeded", "job.failed"],
    "description": "nightly pipeline",
    "enabled": True,
    "disabled_reason": None,
    "failing_since": None,
    "created_at": _AT,
}
_SUPPORTED = {
    "tasks": ["text-classification"],
    "structures": ["attention_heads", "ffn_neurons", "layers", "hidden_size", "vocabulary", "weights"],
    "criteria": ["magnitude", "taylor"],
    "exports": ["huggingface", "huggingface_custom", "onnx", "onnx_int8"],
}
_MODEL_READY: dict[str, Any] = {
    "id": _MODEL,
    "object": "model",
    "name": "support-intents",
    "state": "ready",
    "family": "bert",
    "architecture": "BertForSequenceClassification",
    "task": "text-classification",
    "parameters": 22_713_216,
    "size": 90_852_864,
    "dtype": "float32",
    "files": [{"path": "model.safetensors", "size": 90_852_864, "sha256": _SHA256}],
    "structure": _structure(12, 1536),
    "supported": _SUPPORTED,
    "parent_model_id": None,
    "job_id": None,
    "metadata": {"team": "search"},
    "created_at": _AT,
}
_DELIVERY: dict[str, Any] = {
    "id": "wvd_01KG9W8B0D2F4H6K8N0Q2S4V6X",
    "object": "webhook_delivery",
    "endpoint_id": _ENDPOINT["id"],
    "event_id": _EVENT["id"],
    "type": "job.succeeded",
    "job_id": _JOB,
    "url": None,
    "status": "succeeded",
    "attempts": [],
    "next_attempt_at": None,
    "created_at": _LATER,
    "finished_at": _LATER,
}
_CAPABILITIES: dict[str, Any] = {
    "families": [
        {
            "name": "bert",
            "architectures": ["BertForSequenceClassification"],
            "tasks": ["text-classification"],
            "structures": _SUPPORTED["structures"],
            "stock_structures": ["ffn_neurons", "layers", "hidden_size", "vocabulary", "weights"],
            "stacks": [],
            "reasons": {},
            "exports": _SUPPORTED["exports"],
        }
    ],
    "other_families": _SUPPORTED | {"structures": ["weights"]},
    "tasks": ["text-classification"],
    "structures": [{"name": "ffn_neurons", "criteria": ["magnitude", "taylor"], "patterns": []}],
    "exports": _SUPPORTED["exports"],
    "metrics": {"text-classification": ["accuracy", "macro_f1"]},
    "limits": {"json_body": 1 << 20, "upload": 200 << 30, "page": 100, "wait_seconds": 60, "attempts": 3},
    "workers": [
        {
            "name": "gpu-1:4711",
            "devices": [{"kind": "cuda", "name": "NVIDIA H100", "memory": 80 << 30}],
            "sandbox": "bubblewrap+seccomp+gpu",
            "started_at": _AT,
        }
    ],
}
_ROWS = {"rows": 4000, "size": 512_000, "sha256": _SHA256}

EXAMPLES: dict[str, dict[str, Any]] = {
    "Manifest": {
        "name": "support-intents",
        "files": [{"path": "config.json", "size": 612, "sha256": _SHA256}],
        "metadata": {"team": "search"},
    },
    "JobSpec": _SPEC,
    "InspectionSpec": {"dataset_id": _DATASET, "structures": ["attention_heads", "ffn_neurons"], "ratios": [0.25, 0.5]},
    "Retry": {"from": "checkpoint"},
    "SpecPatch": {"seed": 1, "name": "support-intents, seed 1"},
    "NewKey": {"name": "nightly-pipeline", "scopes": ["read", "write"], "expires_at": "2099-12-31T00:00:00Z"},
    "NewWebhookEndpoint": {"url": _ENDPOINT["url"], "events": _ENDPOINT["events"], "description": "nightly pipeline"},
    "WebhookEndpointChanges": {"enabled": True},
    "Problem": {
        "type": "urn:secateur:error:invalid-spec",
        "title": "Cannot work as asked",
        "status": 422,
        "detail": "The body cannot work as it stands; see errors.",
        "code": "INVALID_SPEC",
        "request_id": "req_01KG9W7A9C1E3G5J7M9P1R3TVX",
        "errors": [{"pointer": "/pruning", "detail": "give either cuts, at least one, or a target"}],
    },
    "JobView": _JOB_DONE,
    "EventView": _EVENT | {"level": "info", "data": {"attempt": 1}},
    "KeyView": _KEY,
    "CreatedKey": _KEY | {"key": "sct_…"},
    "TenantView": {
        "object": "tenant",
        "name": "search",
        "limits": {"stored_bytes": 10**12, "queued_jobs": 100, "running_jobs": 2, "requests_per_minute": 600},
        "usage": {"stored_bytes": 69_600_000, "queued_jobs": 3, "running_jobs": 2},
    },
    "AuditEntryView": {
        "id": "aud_01KG9W8B0D2F4H6K8N0Q2S4V6X",
        "object": "audit_entry",
        "created_at": _AT,
        "key_id": _KEY["id"],
        "action": "job.create",
        "target": _JOB,
        "request_id": "req_01KG9W7A9C1E3G5J7M9P1R3TVX",
        "data": {},
    },
    "WebhookEndpointView": _ENDPOINT,
    "CreatedWebhookEndpoint": _ENDPOINT | {"secret": "whsec_…"},
    "WebhookDeliveryView": _DELIVERY,
    "ModelView": _MODEL_READY,
    "Lineage": {
        "model_id": _PRUNED,
        "root_id": _MODEL,
        "nodes": [
            {
                "id": _MODEL,
                "parent_model_id": None,
                "generation": -1,
                "state": "deleted",
                "name": None,
                "parameters": None,
                "size": None,
                "created_at": _AT,
                "job": None,
            },
            {
                "id": _PRUNED,
                "parent_model_id": _MODEL,
                "generation": 0,
                "state": "ready",
                "name": "support-intents-half-latency",
                "parameters": 17_200_000,
                "size": 69_100_000,
                "created_at": _LATER,
                "job": {
                    "id": _JOB,
                    "name": "support-intents-half-latency",
                    "status": "succeeded",
                    "cut": "ffn_neurons 50 % by taylor",
                    "passed": True,
                },
            },
        ],
        "edges": [{"parent": _MODEL, "child": _PRUNED, "job_id": _JOB}],
        "truncated": False,
    },
    "DatasetView": {
        "id": _DATASET,
        "object": "dataset",
        "name": "support-intents",
        "task": "text-classification",
        "splits": {"train": _ROWS, "validation": _ROWS | {"rows": 500}, "test": _ROWS | {"rows": 1000}},
        "labels": ["billing", "refund"],
        "created_at": _AT,
    },
    "ArtifactView": {
        "id": "art_01KG9XB2N5Q7S9V1X3Z5B7D9FH",
        "object": "artifact",
        "job_id": _JOB,
        "path": "onnx/model.onnx",
        "kind": "onnx",
        "media_type": "application/octet-stream",
        "size": 69_600_000,
        "sha256": _SHA256,
        "content_url": "https://secateur.example/v1/artifacts/art_01KG9XB2N5Q7S9V1X3Z5B7D9FH/content",
        "created_at": _LATER,
    },
    "Series": {"name": "finetuning/loss", "points": [{"step": 1, "time": _AT, "value": 0.31}]},
    "Validated": {"configuration": _JOB_DONE["configuration"], "warnings": []},
    "Estimate": {
        "seconds": {"low": 240.0, "high": 480.0},
        "memory": 2_100_000_000,
        "disk": 696_000_000,
        "expected": {
            "parameters": {"low": 17_230_000, "high": 17_580_000},
            "size": {"low": 68_920_000, "high": 70_320_000},
            "flops": {"low": 1_420_000_000, "high": 1_449_000_000},
        },
        "fits": True,
        "reasons": [],
        "device": "cpu",
        "learned_from": 6,
    },
    "Capabilities": _CAPABILITIES,
    "Alive": {"status": "ok"},
    "Readiness": {
        "status": "ready",
        "checks": {"database": True, "broker": True, "storage": True, "worker": True},
        "sandbox": ["bubblewrap+seccomp"],
        "warnings": [],
    },
}
"""By the name of the schema in the document."""
