"""Everything that can go wrong with a request, and the one shape in which it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from digseg_engine.errors import DigsegError, InputError, UsageError

if TYPE_CHECKING:
    from fastapi.responses import JSONResponse


class RequestError(DigsegError):
    """An answer that is an error: HTTP status, a code for programs, a sentence for people, headers of the answer."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}

    def response(self) -> JSONResponse:
        # imported here: models of Triton Inference Server refuse with the same errors, and have no FastAPI
        from fastapi.responses import JSONResponse

        return JSONResponse(body(self.status, self.code, str(self)), self.status, self.headers)


def body(status: int, code: str, message: str) -> dict[str, Any]:
    """The JSON of every error."""
    return {"error": {"status": status, "code": code, "message": message}}


def problem_of(error: DigsegError) -> RequestError:
    """An error of the engine as an answer: what the client gave cannot be used, or the server failed."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, (InputError, UsageError)):
        return RequestError(422, "cannot_be_used", str(error))
    return RequestError(500, "failed", str(error))


def refused(message: str) -> RequestError:
    return RequestError(403, "refused", message)


def malformed(message: str) -> RequestError:
    return RequestError(422, "malformed", message)


def too_large(message: str) -> RequestError:
    return RequestError(413, "too_large", message)


def too_many_prompts(got: int, most: int) -> RequestError:
    return RequestError(422, "too_many_prompts", f"{got} prompts given, at most {most} are answered at once; ask in several "
                        "requests, about one encoding")  # fmt: skip


def busy(message: str, seconds: int = 1) -> RequestError:
    return RequestError(429, "busy", message, {"Retry-After": str(seconds)})


def ending() -> RequestError:
    return RequestError(
        503, "ending", "the server is ending and takes no new work; ask another one", {"Connection": "close"}
    )


def unknown_encoding(name: str) -> RequestError:
    return RequestError(404, "unknown_encoding", f"no encoding {name!r:.80} is kept here: it was never made by this server, or "
                        "let go since; encode the picture again")  # fmt: skip


def gone() -> RequestError:
    """Nobody reads it; the number is what logs and counts show."""
    return RequestError(499, "gone", "the client closed the connection")
