"""The ml worker's own work: training, reading, and what becomes of both when the time is up or the process dies."""

import json
from itertools import count
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

import ml
from asyncq import SoftTimeLimit
from asyncq.testing.harness import running

pytestmark = pytest.mark.any_version


class Steps:
    """A context that notes progress, and stops the training where a test says so."""

    def __init__(self, *, cancelled_after=None, soft_limit_at=None):
        self.updates = []
        self.warned = []
        self._cancelled_after = cancelled_after
        self._soft_limit_at = soft_limit_at
        self._looks = count()
        self.sync = SimpleNamespace(progress=self._progress)
        self.log = SimpleNamespace(warning=lambda event, **values: self.warned.append((event, values)))

    @property
    def cancelled(self):
        return self._cancelled_after is not None and next(self._looks) >= self._cancelled_after

    def _progress(self, done, total, label, **details):
        if done == self._soft_limit_at:
            raise SoftTimeLimit("the time is up")
        self.updates.append((done, total, details["accuracy"]))


QUICK = ml.Training(model="quick", epochs=3, hidden=16)


def test_a_trained_network_reads_digits_that_it_was_not_trained_on(ml_settings):
    """As well as it says, and it says how far it is."""
    steps = Steps()
    trained = ml.train.function(steps, ml.Training(model="good", epochs=25))
    assert (trained.epochs, trained.complete, trained.held_back) == (25, True, 450)
    assert trained.accuracy > 0.9
    assert [update[:2] for update in steps.updates] == [(done, 25) for done in range(1, 26)]
    assert steps.updates[-1][2] == trained.accuracy
    assert (ml_settings.models_dir / "good.joblib").stat().st_size == trained.size_bytes
    _, _, pictures, digits = ml.split(ml.Training(model="good"))
    answer = ml.predict.function(ml.Question(model="good", pictures=(pictures * 16).tolist()))
    right = sum(said == real for said, real in zip(answer.digits, digits, strict=True))
    assert right / len(digits) == pytest.approx(trained.accuracy)
    assert all(0 <= certainty <= 1 for certainty in answer.certainties)


def test_the_same_seed_makes_the_same_network(ml_settings):
    """So a task that runs twice makes the same model."""
    first, second, other = (
        ml.train.function(Steps(), QUICK.model_copy(update={"seed": seed})).accuracy for seed in (1, 1, 2)
    )
    assert first == second != other


def test_at_the_soft_limit_the_best_so_far_is_kept(ml_settings):
    """And the answer says that it is not all."""
    steps = Steps(soft_limit_at=2)
    trained = ml.train.function(steps, QUICK)
    assert (trained.epochs, trained.complete) == (2, False)
    assert trained.accuracy >= steps.updates[0][2]
    assert steps.warned[0][1] == {"epochs": 2, "of": 3}
    assert (ml_settings.models_dir / "quick.joblib").exists()


def test_a_training_that_is_told_to_stop_keeps_nothing(ml_settings):
    """Nobody wants it any more."""
    with pytest.raises(InterruptedError, match="after 2 epochs"):
        ml.train.function(Steps(cancelled_after=2), QUICK)
    assert not ml_settings.models_dir.exists()


def test_a_process_keeps_a_model_until_it_is_trained_anew(ml_settings, monkeypatch):
    """The second question reads no file; and there are never more than a few."""
    import joblib

    read = []
    load = joblib.load
    monkeypatch.setattr(joblib, "load", lambda path: read.append(path.name) or load(path))
    ml.train.function(Steps(), QUICK)
    assert ml.model("quick") is ml.model("quick")
    assert read == ["quick.joblib"]
    before = ml.model("quick")
    ml.train.function(Steps(), QUICK.model_copy(update={"seed": 5}))
    assert ml.model("quick") is not before
    for number in range(2 * ml.MODELS_KEPT):
        ml.write(f"copy{number}", before)
        ml.model(f"copy{number}")
    assert len(ml._models) == ml.MODELS_KEPT


def test_a_model_that_is_not_there_is_told_by_its_name(ml_settings):
    """With the setting that says where they are."""
    question = ml.Question(model="nothing", pictures=[[0.0] * 64])
    with pytest.raises(ml.MissingModelError, match=r"no model 'nothing'.*ML_MODELS_DIR"):
        ml.predict.function(question)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a.b", "x" * 65, "a b"])
def test_a_message_names_no_path(name):
    """A model file can run code, so nobody outside chooses where it is."""
    with pytest.raises(ValidationError):
        ml.Training(model=name)


@pytest.mark.parametrize("pictures", [[], [[0.0] * 63], [[17.0] * 64], [[-1.0] * 64], [["x"] * 64]])
def test_a_picture_has_64_pixels_of_16_shades(pictures):
    """Before anything is computed."""
    with pytest.raises(ValidationError):
        ml.Question(model="quick", pictures=pictures)


async def test_both_tasks_run_in_processes_of_a_worker(ml_settings):
    """Progress comes from there, and the worker itself has imported no scikit-learn for them."""
    async with running(ml.app):
        handle = await ml.train.send(QUICK)
        trained = await handle.result(60)
        assert trained.complete
        answer = await ml.predict.call(ml.Question(model="quick", pictures=[[0.0] * 64] * 3))
        assert len(answer.digits) == 3
    assert json.loads(trained.model_dump_json())["model"] == "quick"
