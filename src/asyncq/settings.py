"""The settings of an app: arguments of `AsyncQ(...)`, then `ASYNCQ_*` from the environment, then defaults."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from asyncq.errors import ConfigurationError

__all__ = ["Settings", "load_settings"]


class Settings(BaseSettings):
    """What an app can be told. Every field is also an environment variable with the prefix `ASYNCQ_`.

    Attributes:
        broker_url: `amqp://user:password@host:5672/vhost`, or `amqps://`. Several, separated by commas, are
            tried in turn. `memory://` is a broker in this process, for tests and for trying things out.
        namespace: The prefix of asyncq's own exchanges and queues.
        declare: Whether an app declares exchanges and queues. Without it they must stand: `asyncq topology apply`,
            run by who may, declares them.
        heartbeat_s: The AMQP heartbeat, in seconds.
        connect_timeout_s: How long opening waits for the broker, in seconds.
        publish_timeout_s: How long a publish waits for the broker's confirm, in seconds.
        call_timeout_s: How long `call` waits for a result unless told otherwise, in seconds.
        max_message_bytes: Larger messages are refused before they are sent. RabbitMQ 4 allows 16 MiB by default.
        max_result_bytes: A task whose result is larger fails. None: what `max_message_bytes` allows.
        time_limit_s: How long one attempt may take, in seconds. It must stay below the broker's consumer timeout,
            30 minutes by default.
        drain_timeout_s: How long a stopping worker lets running tasks finish, in seconds.
        unknown_task_patience_s: How long a message whose task nobody knows is kept on delay before it is
            dead-lettered, in seconds: during a rolling deploy, new names reach old workers.
        slots: Slots for each queue of a worker that names no number.
        threads: How many `def` tasks one worker runs at once. None: as many as it has slots.
        task_processes: How many tasks with `run_in="process"` one worker runs at once. None: one for each CPU core
            that it may use.
        process_max_tasks: After how many tasks such a process is replaced by a new one, against memory that leaks.
            None: never.
        max_abandoned_threads: When so many threads go on although their time limit is over, the worker drains and ends
            with exit code 75, so that whoever supervises it starts it again.
        poison_after: After how many returned deliveries a worker does not run a message again, but lets it fail: it may
            be what kills workers. Of it and `delivery_limit`, the lower one holds.
        delivery_limit: After how many returned deliveries the broker itself dead-letters a message, without an error
            and without a reply: the backstop. It is an argument of the queues.
        blocked_loop_after_s: After how long without an answer a worker's event loop counts as blocked, in seconds: then
            the log says which task blocks it, with its stack. 0 watches nothing.
        stuck_loop_after_s: After how long without an answer the event loop of a worker or a scheduler counts as stuck,
            in seconds: then it is not healthy any more, and only a restart helps.
        metrics_port: Where a worker or a scheduler serves metrics and health; 0 takes a free port. None: nowhere. For
            `--processes`, set it by the environment or the command line: a supervisor never reads the app's code.
        metrics_host: The address of that port; `0.0.0.0` for all who can reach this machine.
        timezone: The time zone of a `Cron` that names none, by its IANA name, such as `Europe/Berlin`.
        cancellations_kept_s: How long a cancelled task is remembered, in seconds: it must be longer than any delay, or
            the task runs after all. All apps of one namespace have the same. 0 switches cancelling off, and
            pausing queues for all workers, for brokers without streams.
        chord_kept_s: How long the queue of a chord, or of a group that something follows, waits for the members beyond
            what they may take by their own delays and time limits, in seconds. What it must cover is how long they may
            wait in their queues, and their retries.
        results: The result store, where any process can read states, progress and results: `sqlite:///results.db`,
            `postgresql://user:password@host/database`, `redis://host:6379/0`, `memory://` (this process only), or
            `none`. All processes of an app need the same one.
        result_ttl_s: How long the store keeps a task after its end, in seconds.
        results_timeout_s: How long one call to the store may take, in seconds.
        progress_interval_s: How much time is between two progress updates of a task that go into the store, in seconds.
        tracing: Whether sends and attempts make OpenTelemetry spans. None: where the program has set a tracer provider,
            as `opentelemetry-instrument` does.
        reply_queue_ttl_s: How long a reply queue outlives its dropped connection, in seconds.
    """

    model_config = SettingsConfigDict(env_prefix="ASYNCQ_", frozen=True, extra="forbid")

    broker_url: str = Field(default="amqp://guest:guest@localhost:5672/", repr=False)  # it holds a password
    namespace: str = Field(default="asyncq", pattern=r"^[A-Za-z0-9_-]{1,40}$")
    declare: bool = True
    heartbeat_s: int = Field(default=10, ge=1, le=600)
    connect_timeout_s: float = Field(default=10.0, gt=0)
    publish_timeout_s: float = Field(default=30.0, gt=0)
    call_timeout_s: float = Field(default=60.0, gt=0)
    max_message_bytes: int = Field(default=16 * 1024 * 1024, ge=1024, le=512 * 1024 * 1024)
    max_result_bytes: int | None = Field(default=None, ge=1)
    time_limit_s: float = Field(default=25 * 60.0, gt=0)
    drain_timeout_s: float = Field(default=30.0, ge=0)
    unknown_task_patience_s: float = Field(default=300.0, ge=0)
    slots: int = Field(default=10, ge=1, le=2000)
    threads: int | None = Field(default=None, ge=1, le=2000)
    task_processes: int | None = Field(default=None, ge=1, le=500)
    process_max_tasks: int | None = Field(default=None, ge=1)
    max_abandoned_threads: int = Field(default=10, ge=1)
    poison_after: int = Field(default=10, ge=1)
    delivery_limit: int = Field(default=50, ge=1)
    blocked_loop_after_s: float = Field(default=1.0, ge=0)
    stuck_loop_after_s: float = Field(default=30.0, gt=0)
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    metrics_host: str = "127.0.0.1"
    timezone: str = "UTC"
    cancellations_kept_s: float = Field(default=7 * 86400.0, ge=0, le=400 * 86400)
    chord_kept_s: float = Field(default=7 * 86400.0, ge=1, le=100 * 86400)
    results: str = Field(default="none", repr=False)  # likewise
    result_ttl_s: float = Field(default=7 * 24 * 3600.0, gt=0, le=100 * 365 * 24 * 3600.0)
    results_timeout_s: float = Field(default=10.0, gt=0)
    progress_interval_s: float = Field(default=0.5, ge=0)
    tracing: bool | None = None
    reply_queue_ttl_s: float = Field(default=600.0, ge=10)


def load_settings(**given: Any) -> Settings:
    """Return the settings from arguments, environment and defaults.

    Raises:
        ConfigurationError: A value cannot be used; the message names the field and its environment variable.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(part) for part in item['loc'])} "
            f"(environment: ASYNCQ_{'_'.join(str(part) for part in item['loc']).upper()}): {item['msg']}"
            for item in error.errors()
        ]
        raise ConfigurationError("Settings that cannot be used:\n" + "\n".join(lines)) from None
