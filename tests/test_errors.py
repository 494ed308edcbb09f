"""What is a message and what is a bug, told by the class of an error alone."""

import pickle
import threading

import pytest

from lccp_sim import errors
from lccp_sim.configure.load import load_config
from lccp_sim.errors import ConfigError, UserError, is_message, one_line

KINDS = [ConfigError, errors.DamagedRecords, errors.LostRank, errors.NotFinite, errors.OutOfMemory]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_message_also_after_it_went_to_another_process(kind: type[UserError]) -> None:
    sent = pickle.loads(pickle.dumps(kind("what is wrong")))
    assert type(sent) is kind and str(sent) == "what is wrong"
    assert isinstance(sent, UserError) and is_message(sent) and one_line(sent) == "what is wrong"


def test_a_bug_is_no_message_and_a_full_disk_is_one() -> None:
    assert not is_message(ValueError("shapes differ")) and is_message(OSError("no space left"))
    assert one_line(KeyError("a\nb")) == r"KeyError: 'a\nb'"


def test_problems_stay_apart() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("a=1: must be 2", "b=3: must be 4")))
    assert error.problems == ["a=1: must be 2", "b=3: must be 4"]
    assert str(error) == "a=1: must be 2\nb=3: must be 4"


def test_a_config_says_all_that_is_wrong_with_it() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"rum": {}, "seed": 0})
    assert caught.value.problems[0] == "rum: no such group of keys; did you mean 'run'?"
    assert len(caught.value.problems) == 6


class Worker(threading.Thread):
    """A thread that keeps its error, as TensorBoard's writer does."""

    def __init__(self, error: Exception, keeps: bool = True):
        super().__init__()
        self.error, self.keeps, self.exception = error, keeps, None

    def run(self) -> None:
        self.exception = self.error if self.keeps else None
        raise self.error


def test_an_error_that_a_thread_keeps_for_its_owner_is_not_printed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda told: heard.append(told.exc_value))
    full, lost, bug = OSError("no space left"), OSError("no space left"), ValueError("shapes differ")
    with errors.heard_once():
        for worker in (Worker(full), Worker(lost, keeps=False), Worker(bug)):
            worker.start()
            worker.join()
    assert heard == [lost, bug]
