"""The interleaver, on contestants that compute nothing."""

import pytest

from gpt2opt.measure.turns import Contestants, Here, in_child, one_line, warm_up


class Contestant:
    """Returns the seconds that it is made for, and remembers its calls; raises from a number of calls on."""

    def __init__(self, seconds=1.0, fails_after=1000, calls=None):
        self.seconds, self.fails_after, self.calls = seconds, fails_after, [] if calls is None else calls

    def run(self, *given):
        self.calls.append((self, given))
        if len(self.calls) > self.fails_after:
            raise RuntimeError("first line\nno such kernel")
        return self.seconds


def outcome_of(contestants, tasks=("task",), rounds=3, **settings):
    with Contestants({name: Here(each) for name, each in contestants.items()}, may_fail=True) as started:
        *_, outcome = started.take_turns("run", tasks, rounds=rounds, **settings)
        return outcome, started


def test_everybody_gets_the_same_arguments_and_every_round_others():
    contestants = {name: Contestant() for name in "abc"}
    outcome, _ = outcome_of(contestants, ("small", "large"), arguments=lambda task, number: (task, number))
    seen = [[given for _, given in contestant.calls] for contestant in contestants.values()]
    assert seen[1] == seen[2]
    assert seen[1] == [(task, 0) for task in ("small", "small", "large", "large")] + [
        (task, number) for number in (1, 2, 3) for task in ("small", "large")
    ]
    assert outcome.samples["b"] == {"small": [1, 1, 1], "large": [1, 1, 1]}  # the warm-up is not among them
    assert outcome.warmups["b"] == {"small": (2, True), "large": (2, True)}


def test_the_first_one_takes_part_twice():
    outcome, _ = outcome_of({"a": Contestant(), "b": Contestant()})
    assert list(outcome.samples) == ["a", "a again", "b"]
    assert list(outcome_of({"a": Contestant()})[0].samples) == ["a"]  # nothing is compared with it
    with Contestants({name: in_child(Contestant) for name in "ab"}) as started:
        assert started.names == ["a", "a again", "b"]
        assert len({started._workers[name]._process.pid for name in started.names}) == 3


def test_nobody_is_no_error():
    outcome, started = outcome_of({})
    assert (outcome.samples, started.names) == ({}, [])


def test_tasks_of_each_contestant():
    outcome, _ = outcome_of({"a": Contestant(), "b": Contestant()}, {"a": ("one", "two"), "b": ("two",)})
    assert {name: list(samples) for name, samples in outcome.samples.items()} == {
        "a": ["one", "two"], "a again": ["one", "two"], "b": ["two"],
    }  # fmt: skip


def test_the_order_changes_and_every_second_one_is_the_reverse():
    calls = []
    outcome_of({name: Contestant(calls=calls) for name in "abc"}, rounds=8)
    turns = [contestant for contestant, _ in calls[8:]]  # behind two warm-up runs of each
    orders = [turns[start : start + 4] for start in range(0, 32, 4)]
    assert all(second == first[::-1] for first, second in zip(orders[::2], orders[1::2], strict=True))
    assert len({tuple(map(id, order)) for order in orders}) > 2


def test_one_that_fails_leaves_and_the_others_go_on():
    outcome, started = outcome_of({"a": Contestant(), "broken": Contestant(fails_after=3)})
    assert started.left == {"broken": "failed on task: no such kernel"}
    assert outcome.samples["broken"] == {}
    assert len(outcome.samples["a"]["task"]) == 3
    with Contestants({"a": Here(Contestant()), "broken": lambda: 1 / 0}, may_fail=True) as started:
        assert started.left == {"broken": "failed: division by zero"}


def test_an_error_is_raised_by_default():
    with Contestants({"broken": Here(Contestant(fails_after=0))}) as started, pytest.raises(RuntimeError, match="kernel"):
        list(started.take_turns("run", ["task"], rounds=2))
    with pytest.raises(ZeroDivisionError):
        Contestants({"broken": lambda: 1 / 0})


def test_one_that_would_take_most_of_the_time_leaves():
    contestants = {"a": Contestant(), "slow": Contestant(13.0), "less slow": Contestant(5.0)}
    _, started = outcome_of(contestants, too_slow=12)
    assert started.left == {"slow": "too slow: 13 × the time of a for task"}
    assert outcome_of(contestants)[1].left == {}


def test_memory_that_has_to_stay_free(monkeypatch):
    with Contestants({name: Here(Contestant()) for name in "ab"}, may_fail=True, reserve_bytes=1e18) as started:
        assert set(started.left.values()) == {"failed: no memory is left beside those before it; name fewer"}


@pytest.mark.parametrize(("seconds", "expected"), [([1, 1], (2, True, 1)), ([4, 2, 1, 1], (4, True, 1))])
def test_warming_up_lasts_until_runs_get_no_faster(seconds, expected):
    assert warm_up(iter(seconds).__next__) == expected


def test_warming_up_ends():
    assert warm_up(iter(2.0 ** (20 - run) for run in range(20)).__next__) == (10, False, 2.0**11)


def test_a_complaint_in_one_line():
    assert one_line("first\n  the cause \n\n") == "the cause"
    assert one_line(ValueError()) == "ValueError"
    assert one_line("x" * 500) == "x" * 360
