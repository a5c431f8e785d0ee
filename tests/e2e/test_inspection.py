"""An inspection through HTTP, with a real worker: what it finds, tells and draws, and no model."""

from pathlib import Path

from tests.e2e.test_pipeline import upload, wait
from tests.live import LiveService


def test_a_model_is_inspected_before_it_is_pruned(live_service: LiveService, tmp_path: Path) -> None:
    client = live_service.client
    model, dataset = upload(live_service, tmp_path)
    order = {
        "dataset_id": dataset,
        "baseline": {"epochs": 2, "learning_rate": 3e-3},
        "criteria": [{"kind": "magnitude"}, {"kind": "taylor"}, {"kind": "similarity"}],
        "ratios": [0.5],
        "max_length": 16,
        "device": "cpu",
    }
    posted = client.post(f"/v1/models/{model}/inspections", json=order, headers={"Idempotency-Key": "look"})
    assert posted.status_code == 202, posted.text
    view = wait(live_service, posted.json()["id"])
    assert view["status"] == "succeeded", f"{view['error']}\n{live_service.log()}"
    assert (view["kind"], view["result"], view["progress"]["fraction"]) == ("inspection", None, 1.0)
    found = view["inspection"]
    assert found["loss"] < 0.69 and (found["rows"], found["split"]) == (32, "validation")
    tried = [(one["structure"], one["criterion"]["kind"]) for one in found["scored"]]
    assert tried == [
        *(("attention_heads", kind) for kind in ("magnitude", "taylor")),
        *(("ffn_neurons", kind) for kind in ("magnitude", "taylor")),
        *(("layers", kind) for kind in ("magnitude", "taylor", "similarity")),
        *(("weights", kind) for kind in ("magnitude", "taylor")),
    ]
    assert all(trial["loss"] is not None for one in found["scored"] for trial in one["trials"])
    assert len(found["alike"][0]["states"]) == 3

    events = client.get(f"/v1/jobs/{view['id']}/events", params={"limit": 100}).json()["data"]
    assert {"inspection.near_zero", "inspection.structure", "inspection.layer"} <= {e["type"] for e in events}
    page = client.get(view["links"]["report"], headers={"Accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html") and page.text.count("<svg") == 4
    units = client.get(view["links"]["report"], headers={"Accept": "application/json"}).json()["units"]
    assert {unit["structure"] for unit in units} == {"attention_heads", "ffn_neurons", "layers"}
    assert client.get(f"/v1/jobs/{view['id']}/model").status_code == 404
    assert [row["id"] for row in client.get("/v1/models").json()["data"]] == [model]
