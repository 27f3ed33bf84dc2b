"""A web service that hands its slow work to the workers `mail.py` and `images.py`, and tells how far it is.

It sends, and reads the result store; so it may run on another machine than the workers, any number of times. Only the
folders of pictures are shared with the images worker.

- `POST /send-notification` answers at once, with the id of a mail that is sent later; `GET /task/{task_id}` says how
  far any task is.
- `GET /` is a page that uploads pictures, follows their conversion by server-sent events, cancels it, and shows them.
- Both kinds of routes are here: `async def`, and `def`, which FastAPI runs in threads.

Run it with `uvicorn web:api` in this folder; README.md says what has to run beside it. Its settings are environment
variables, `WEB_*`.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, HTTPException, UploadFile
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, EmailStr, Field, JsonValue
from pydantic_core import from_json
from pydantic_settings import BaseSettings, SettingsConfigDict

import images
import mail
from asyncq import Progress, TaskState
from asyncq.integrations.fastapi import (
    AsyncQDep,
    TaskId,
    TaskStatusOut,
    add_error_handlers,
    asyncq_lifespan,
    status_model,
    task_router,
)


class WebSettings(BaseSettings):
    """What the environment says, for example `WEB_UPLOAD_MAX_BYTES=1000000`.

    Attributes:
        upload_max_bytes: Larger pictures are refused.
        mail_queue: Where the mail worker takes its tasks.
        images_queue: Where the images worker takes its tasks.
    """

    model_config = SettingsConfigDict(env_prefix="WEB_", frozen=True)

    upload_max_bytes: Annotated[int, Field(ge=1)] = 20 * 1024 * 1024
    mail_queue: str = mail.send_email.queue
    images_queue: str = images.convert.queue


class Notification(BaseModel):
    """A message to somebody.

    Attributes:
        to: The recipient's address.
        subject: One line.
        text: What to say.
    """

    to: EmailStr
    subject: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\r\n]+$")] = "A notification"
    text: Annotated[str, Field(min_length=1, max_length=10_000)]


class Sent(BaseModel):
    """A task that a worker will do.

    Attributes:
        task_id: Its id, for `GET /task/{task_id}`.
        status: Where it is.
    """

    task_id: str
    status: TaskState


class TaskAnswer(Sent):
    """How far a task is; what does not belong to its status is left out.

    Attributes:
        progress: How far it is, while it runs.
        result: What it has returned.
        error: What went wrong.
    """

    progress: Progress | None = None
    result: JsonValue = None
    error: str | None = None


settings = WebSettings()
api = FastAPI(title="asyncq: a sample service", lifespan=asyncq_lifespan(mail.app, images.app))
api.include_router(task_router())  # /tasks/{id} and /tasks/{id}/events, which the page uses
api.mount("/pictures", StaticFiles(directory=images.settings.output_dir, check_dir=False))
add_error_handlers(api)


@api.post("/send-notification", status_code=202)
async def send_notification(notification: Notification) -> Sent:
    """Let a mail be sent, and answer as soon as RabbitMQ has the task."""
    letter = mail.Letter(to=notification.to, subject=notification.subject, values={"body": notification.text})
    handle = await mail.send_email.options(queue=settings.mail_queue).send(letter)
    return Sent(task_id=handle.id, status=TaskState.QUEUED)


@api.get("/task/{task_id}", response_model_exclude_none=True)
async def get_task(task_id: TaskId, app: AsyncQDep) -> TaskAnswer:
    """Say how far a task is, with its result, its error or its progress."""
    status = await app.handle(task_id).status()
    if status.state is TaskState.UNKNOWN:
        raise HTTPException(404, f"Nothing is known of a task {task_id}.")
    answer = TaskAnswer(task_id=task_id, status=status.state)
    if status.result is not None:
        answer.result = from_json(status.result)
    elif status.error is not None:
        answer.error = f"{status.error.type}: {status.error.message}"
    else:
        answer.progress = status.progress
    return answer


@api.get("/notifications/{task_id}", response_model=status_model(mail.send_email))
def get_notification(task_id: TaskId) -> TaskStatusOut[mail.Receipt]:
    """Say how far a mail is; its result has a type here, and the id of another task is none of a mail (404)."""
    status = mail.app.sync.handle(task_id, mail.send_email).status()
    if status.state is TaskState.UNKNOWN:
        raise HTTPException(404, f"Nothing is known of a notification {task_id}.")
    return TaskStatusOut[mail.Receipt].of(status)


@api.post("/pictures", status_code=202)
def convert_picture(picture: UploadFile) -> Sent:
    """Keep a picture, and let it be converted to WebP."""
    if picture.size is None or picture.size > settings.upload_max_bytes:
        raise HTTPException(413, f"A picture may have {settings.upload_max_bytes} bytes.")
    # A name of its own: what the client calls it could be a path, or another one's picture.
    name = uuid.uuid4().hex
    images.settings.input_dir.mkdir(parents=True, exist_ok=True)
    with (images.settings.input_dir / name).open("wb") as file:
        shutil.copyfileobj(picture.file, file)
    handle = images.app.sync.send(images.convert.options(queue=settings.images_queue).s(name))
    return Sent(task_id=handle.id, status=TaskState.QUEUED)


@api.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Return the page that uploads pictures."""
    return FileResponse(Path(__file__).parent / "templates" / "web" / "page.html")
