"""Which service a command talks to, and with which key."""

from service.client import Client, Unreachable
from service.config import Settings, get_settings


def address(settings: Settings) -> tuple[str, str]:
    """URL and API key: from the environment, else as a local `secateur up` left them in its data directory.

    The local key is never sent to another address. Raises `Unreachable` with what to set.
    """
    local_url, local_key = _noted(settings, "url"), _noted(settings, "api-key")
    url = settings.url or local_url
    if url is None:
        raise Unreachable(
            f"No service is known: start one with `secateur up` (its data directory would be {settings.data_dir}; "
            "SECATEUR_DATA_DIR names another), or set SECATEUR_URL and SECATEUR_API_KEY."
        )
    if settings.api_key is not None:
        return url, settings.api_key.get_secret_value()
    if local_key is None or url != local_url:
        raise Unreachable(f"No key for {url} is known: set SECATEUR_API_KEY.")
    return url, local_key


def connect() -> Client:
    """A client of the service that the environment or the local data directory names."""
    return Client(*address(get_settings()))


def _noted(settings: Settings, name: str) -> str | None:
    file = settings.data_dir / name
    return file.read_text().strip() if file.is_file() else None
