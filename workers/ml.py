"""Train a classifier of handwritten digits and ask it, with scikit-learn.

Training computes for as long as it is let: in a thread it would hold up all other threads of the worker, so both tasks
run in processes. scikit-learn is imported there only; the worker itself and those who send tasks do without.

- Training tells its progress after each epoch. At the soft time limit it keeps the best model so far, and says that it
  was cut short; at the hard one, or when it is cancelled, its process is killed.
- A crash of the process (no memory, a fault in native code) is tried again, other errors are not.
- A model appears under its name when it is complete, and not before (temporary file, then rename). So a repeated task
  does no harm.
- A process keeps the last models that it was asked for: the second prediction reads no file.

The data set is `load_digits`, which scikit-learn ships: 1,797 pictures of 8 x 8 pixels. A part of it, which follows
from the seed, is kept back, and the accuracy is measured on that.

Model files are pickles: whoever can write into the folder can run code here. Messages name a model, never a path.

Run it with `asyncq worker ml:app` in this folder. Its settings are environment variables, `ML_*`.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from asyncq import AsyncQ, Exponential, ProcessDied, RetryPolicy, SoftTimeLimit, TaskContext

if TYPE_CHECKING:
    import numpy as np

MODELS_KEPT = 4
CLASSES = list(range(10))
PIXELS = 64

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Picture = Annotated[list[Annotated[float, Field(ge=0, le=16)]], Field(min_length=PIXELS, max_length=PIXELS)]


class MlSettings(BaseSettings):
    """What the environment says, for example `ML_MODELS_DIR=/srv/models`.

    Attributes:
        models_dir: Gets `NAME.joblib`.
        soft_time_limit_s: After which training keeps what it has, in seconds.
        time_limit_s: After which its process is killed, in seconds.
        max_attempts: How often a task whose process died is run in all.
    """

    model_config = SettingsConfigDict(env_prefix="ML_", frozen=True)

    models_dir: Path = Path("models")
    soft_time_limit_s: Annotated[float, Field(gt=0)] = 300
    time_limit_s: Annotated[float, Field(gt=0)] = 330
    max_attempts: Annotated[int, Field(ge=1)] = 3


class MissingModelError(Exception):
    """No model of this name was trained here."""


class Training(BaseModel):
    """What is to be trained.

    Attributes:
        model: The name that it gets.
        epochs: How often the training pictures are gone through.
        hidden: The neurons of the hidden layer.
        held_back: The share of pictures that it is not trained on.
        seed: The same seed makes the same model of the same library.
    """

    model_config = ConfigDict(extra="forbid")

    model: Name
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 40
    hidden: Annotated[int, Field(ge=1, le=2_000)] = 64
    held_back: Annotated[float, Field(gt=0, lt=1)] = 0.25
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class Trained(BaseModel):
    """What became of it.

    Attributes:
        model: Its name.
        epochs: How many epochs it was trained; fewer than asked for where the time was up.
        complete: Whether these were all.
        accuracy: The share of the pictures held back that it reads rightly.
        held_back: How many these are.
        size_bytes: Of the model's file.
        seconds: How long it took.
    """

    model: str
    epochs: int
    complete: bool
    accuracy: float
    held_back: int
    size_bytes: int
    seconds: float


class Question(BaseModel):
    """Pictures to be read.

    Attributes:
        model: The model's name.
        pictures: 64 pixels each, from 0 (white) to 16 (black), row by row.
    """

    model_config = ConfigDict(extra="forbid")

    model: Name
    pictures: Annotated[list[Picture], Field(min_length=1, max_length=10_000)]


class Answer(BaseModel):
    """What the model reads.

    Attributes:
        digits: One for each picture.
        certainties: How sure it is of each, from 0 to 1.
    """

    digits: list[int]
    certainties: list[float]


settings = MlSettings()
app = AsyncQ("ml")

again_after_a_crash = RetryPolicy(
    on=(ProcessDied,), max_attempts=settings.max_attempts, backoff=Exponential(first=1, factor=4, max=60)
)
_models: dict[tuple[str, int], Any] = {}
"""The models that this process has read, by file and time of change."""


@app.task(
    run_in="process",
    pass_context=True,
    retry=again_after_a_crash,
    soft_time_limit=settings.soft_time_limit_s,
    time_limit=settings.time_limit_s,
)
def train(ctx: TaskContext, training: Training) -> Trained:
    """Train a model and keep it under its name.

    Args:
        ctx: The running task.
        training: What is to be trained.

    Returns:
        How good it is.

    Raises:
        InterruptedError: It was told to stop.
        SoftTimeLimit: The time was up before the first epoch was over.
    """
    import numpy as np  # noqa: PLC0415 - here and below: only the processes need it
    from sklearn.neural_network import MLPClassifier  # noqa: PLC0415
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    started = perf_counter()
    learn, learn_digits, test, test_digits = split(training)
    network = MLPClassifier(hidden_layer_sizes=(training.hidden,), random_state=training.seed)
    order = np.random.default_rng(training.seed)
    weights: Any = None
    best, epoch = 0.0, 0
    try:
        with threadpool_limits(1):  # one core a process; the worker has as many processes as cores
            while epoch < training.epochs:
                if ctx.cancelled:
                    raise InterruptedError(f"training of {training.model!r} was told to stop after {epoch} epochs")
                rows = order.permutation(len(learn))
                network.partial_fit(learn[rows], learn_digits[rows], classes=CLASSES)
                accuracy = float(network.score(test, test_digits))
                if weights is None or accuracy > best:
                    weights, best = weights_of(network), accuracy
                epoch += 1
                ctx.sync.progress(epoch, training.epochs, label=f"accuracy {best:.3f}", accuracy=best)
    except SoftTimeLimit:
        if weights is None:
            raise
        ctx.log.warning("the time is up; the best model so far is kept", epochs=epoch, of=training.epochs)
    network.coefs_, network.intercepts_ = weights
    return Trained(
        model=training.model,
        epochs=epoch,
        complete=epoch == training.epochs,
        accuracy=best,
        held_back=len(test),
        size_bytes=write(training.model, network),
        seconds=round(perf_counter() - started, 3),
    )


@app.task(run_in="process", retry=again_after_a_crash, time_limit=60)
def predict(question: Question) -> Answer:
    """Read handwritten digits with a trained model.

    Args:
        question: Which model, and the pictures.

    Returns:
        The digits, and how sure it is.

    Raises:
        MissingModelError: There is no such model.
    """
    import numpy as np  # noqa: PLC0415

    chances = model(question.model).predict_proba(scaled(np.asarray(question.pictures)))
    digits = chances.argmax(axis=1)
    return Answer(digits=digits.tolist(), certainties=chances.max(axis=1).round(6).tolist())


def split(training: Training) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the pictures and digits to learn from, and those held back: the same ones for the same seed."""
    from sklearn.datasets import load_digits  # noqa: PLC0415
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    data = load_digits()
    learn, test, learn_digits, test_digits = train_test_split(
        data.data, data.target, test_size=training.held_back, random_state=training.seed, stratify=data.target
    )
    return scaled(learn), learn_digits, scaled(test), test_digits


def scaled(pictures: np.ndarray) -> np.ndarray:
    """Return pixels from 0 to 1."""
    return pictures / 16.0


def weights_of(network: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return a copy of what a network has learnt."""
    return [layer.copy() for layer in network.coefs_], [layer.copy() for layer in network.intercepts_]


def write(name: str, network: Any) -> int:
    """Write a model under its name, completely or not at all, and return the file's size."""
    import joblib  # noqa: PLC0415

    settings.models_dir.mkdir(parents=True, exist_ok=True)
    target = settings.models_dir / f"{name}.joblib"
    # A name of its own: a redelivered task may run while its first attempt still writes.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            joblib.dump(network, file)
            file.flush()
            os.fsync(file.fileno())
        size_bytes = temporary.stat().st_size
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return size_bytes


def model(name: str) -> Any:
    """Return a trained model; one that was read before from memory, while its file is the same.

    Raises:
        MissingModelError: There is no such file.
    """
    import joblib  # noqa: PLC0415

    path = settings.models_dir / f"{name}.joblib"
    try:
        key = (str(path), path.stat().st_mtime_ns)
    except FileNotFoundError:
        raise MissingModelError(f"there is no model {name!r} in {settings.models_dir} (ML_MODELS_DIR)") from None
    if key not in _models:
        while len(_models) >= MODELS_KEPT:
            del _models[next(iter(_models))]
        _models[key] = joblib.load(path)
    return _models[key]
