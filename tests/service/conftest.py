"""What tests of the client share."""

import pytest


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries, noted instead of waited."""
    noted: list[float] = []

    async def sleep(seconds: float) -> None:
        noted.append(seconds)

    monkeypatch.setattr("service.client.time.sleep", noted.append)
    monkeypatch.setattr("service.client.asyncio.sleep", sleep)
    return noted
