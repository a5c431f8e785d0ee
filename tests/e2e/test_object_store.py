"""The whole way on an object store: nothing of a model, a job or a data set lies on the service's own disk."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import Client
from service.config import Settings
from tests.e2e.test_pipeline import spec_of
from tests.live import LiveService
from tests.models import tiny_dataset, tiny_model
from tests.object_store import ENVIRONMENT, S3Server


class OnObjectStore(LiveService):
    """The service with its storage in a bucket, where clients fetch single files."""

    url_of_storage = ""

    @property
    def environment(self) -> dict[str, str]:
        """The keys are in the usual variables, the address among the settings."""
        told = {"SECATEUR_STORAGE_URL": self.url_of_storage, "SECATEUR_PRESIGNED_DOWNLOADS": "true"}
        return super().environment | ENVIRONMENT | told


@pytest.fixture
def service(settings: Settings, api_key: str, s3: S3Server) -> Iterator[OnObjectStore]:
    """An API process and a worker process."""
    with OnObjectStore(settings, api_key) as service:
        service.url_of_storage = s3.bucket()
        service.start_api()
        service.start_worker()
        yield service


def test_up_job_down_and_delete_leaves_nothing(service: OnObjectStore, s3: S3Server, tmp_path: Path) -> None:
    with Client(service.url, service.api_key) as client:
        model = client.push_model(tiny_model(tmp_path / "model", head=False), archive=False)
        dataset = client.push_dataset(tiny_dataset(tmp_path / "data"), "text-classification")
        job = client.watch_job(client.submit_job(spec_of(model["id"], dataset["id"]))["id"])
        assert job["status"] == "succeeded", f"{job['error']}\n{service.log()}"
        pulled = client.pull_job(job["id"], tmp_path / "pruned")
        assert json.loads((tmp_path / "pruned" / "config.json").read_text())["intermediate_size"] == 24
        assert len(pulled) > 2
        for artifact in client.job_artifacts(job["id"]):
            file = client.download_artifact(artifact["id"], tmp_path / "artifact")
            assert hashlib.sha256(file.read_bytes()).hexdigest() == artifact["sha256"]
        again = client.push_model(tmp_path / "model", "again", archive=False)
        assert again["files"] == model["files"], "taken from what the store holds"
        assert not list(service.settings.data_dir.rglob("*.safetensors"))
        assert "model.safetensors" in s3.inside(service.url_of_storage)
        for model_id in (model["id"], again["id"], job["result"]["model_id"]):
            client.delete_model(model_id)
        client.delete_job(job["id"])
        client.delete_dataset(dataset["id"])
    assert "<Key>" not in s3.inside(service.url_of_storage)
    log = service.log()
    assert not any(secret in log for secret in (ENVIRONMENT["AWS_SECRET_ACCESS_KEY"], "X-Amz-Signature"))
