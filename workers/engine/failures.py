"""The one error that the engine reports to its supervisor: a stable code, advice and who has to act."""

from typing import Literal, TypeAlias

Blame: TypeAlias = Literal["user", "service", "transient"]


class EngineError(Exception):
    """Ends the job. `message` says what to do about it and is shown to the client: no paths, no submitted values."""

    def __init__(self, code: str, message: str, *, blame: Blame = "service", retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.blame: Blame = blame
        self.retryable = retryable
