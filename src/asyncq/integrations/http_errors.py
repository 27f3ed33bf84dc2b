"""Errors of asyncq as answers of a web service.

Invariant: what a client is told is written here. The errors' own messages name hosts, queues and users, and go to the
log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from asyncq.errors import (
    AsyncQError,
    BrokerUnavailable,
    InvalidResult,
    MessageTooLarge,
    NoResultStore,
    PartlySent,
    PublishError,
    PublishUncertain,
    ReplyLost,
    ResultTimeout,
    StoreUnavailable,
    TaskNotFound,
    WrongTask,
)
from asyncq.loggers import get_logger

__all__ = ["ErrorOut", "NothingKnown", "add_error_handlers", "http_error"]

log = get_logger("asyncq.integrations")

_COME_AGAIN_S = 5


class ErrorOut(BaseModel):
    """What FastAPI answers with an error."""

    detail: str


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    detail: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(_COME_AGAIN_S)} if self.status == 503 else {}


_NOTHING_KNOWN: Final = _Answer(404, "Nothing is known of a task with this id.")

# The nearest class of an error counts.
_ANSWERS: Final[dict[type[AsyncQError], _Answer]] = {
    TaskNotFound: _NOTHING_KNOWN,
    WrongTask: _Answer(404, "The task with this id is of another kind."),
    MessageTooLarge: _Answer(413, "This is too large to be sent."),
    NoResultStore: _Answer(501, "This service keeps no results."),
    BrokerUnavailable: _Answer(503, "Tasks cannot be sent at the moment. Try again later."),
    PublishError: _Answer(503, "The task was not sent. Try again later."),
    PublishUncertain: _Answer(503, "It is not known whether the task was sent."),
    PartlySent: _Answer(503, "Not all of the tasks were sent."),
    ReplyLost: _Answer(503, "The answer of the task was lost. The task itself goes on."),
    StoreUnavailable: _Answer(503, "The status of tasks cannot be read at the moment. Try again later."),
    ResultTimeout: _Answer(504, "The task has not ended in time. It goes on."),
    InvalidResult: _Answer(500, "The result of the task is not what this service expects."),
}


class NothingKnown(HTTPException):
    """404: nothing is known of a task with this id."""

    def __init__(self) -> None:
        super().__init__(_NOTHING_KNOWN.status, _NOTHING_KNOWN.detail)


def add_error_handlers(api: FastAPI) -> None:
    """Let a service answer with 503 where broker or result store are away, and so on, instead of 500.

    404 for ids that nothing is known of, or that belong to another task; 413 for messages that are too large; 501
    where there is no result store; 504 for results that do not come in time. What is not among these stays a 500.

    Args:
        api: The service.
    """
    for kind in _ANSWERS:
        api.add_exception_handler(kind, _handle)


def http_error(error: AsyncQError) -> HTTPException | AsyncQError:
    """Return what a route raises for an error; the error itself where it is nothing that a client should hear of."""
    answer = _answer_of(error)
    if answer is None:
        return error
    _log(error, answer)
    return HTTPException(answer.status, answer.detail, answer.headers)


async def _handle(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001 - the signature of a handler
    answer = _answer_of(error)
    if answer is None:
        raise error
    _log(error, answer)
    return JSONResponse(ErrorOut(detail=answer.detail).model_dump(), answer.status, answer.headers)


def _answer_of(error: Exception) -> _Answer | None:
    return next((_ANSWERS[kind] for kind in type(error).__mro__ if kind in _ANSWERS), None)


def _log(error: Exception, answer: _Answer) -> None:
    if answer.status >= 500:
        log.warning("a request is answered with an error", status=answer.status, error=str(error))
