"""The queue refuses only when it is full or too late, and shares its places among the clients."""

import heapq
from contextlib import ExitStack
from itertools import count

import pytest

from deploy.server.admission import Admission, client_of
from deploy.server.limits import RETRY_SECONDS, Limits, RefusedError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def admission(queue: int, seconds_per_image: float = 0.0, clock: Clock | None = None) -> Admission:
    return Admission(Limits(queue=queue, deadline_seconds=10), lambda: seconds_per_image, clock or Clock())


@pytest.mark.parametrize("queue", [1, 2, 7, 128])
def test_the_queue_refuses_only_when_it_is_full(queue: int) -> None:
    full = admission(queue)
    with ExitStack() as inside:
        for client in range(queue):
            inside.enter_context(full.admitted(str(client), 1))
        with pytest.raises(RefusedError, match=f"{queue} images? already waits?") as refused:
            full.check("late")
        assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": str(RETRY_SECONDS)})
    assert full.waiting == 0
    full.check("later")


def test_one_client_fills_half_of_the_queue_and_the_next_finds_room() -> None:
    queue = admission(16)
    with ExitStack() as inside:
        for _ in range(8):
            inside.enter_context(queue.admitted("greedy", 1))
        with pytest.raises(RefusedError):
            queue.check("greedy")
        inside.enter_context(queue.admitted("modest", 4))
        assert queue.waiting == 12


def test_a_request_that_cannot_meet_its_deadline_is_refused_at_once() -> None:
    queue = admission(128, seconds_per_image=0.5)
    with queue.admitted("large", 19):
        with pytest.raises(RefusedError, match="no result within 10 s"):
            queue.check("other", 11)  # they take turns, 11 images each
        queue.check("other", 10)
        with pytest.raises(RefusedError):
            queue.check("large", 2)
        queue.check("small", 1)  # waits a turn, not for all
    queue.check("other", 64)  # nothing waits: only trying it shows whether the estimate is right


def test_the_large_images_of_one_client_do_not_count_for_the_others() -> None:
    """Of 16 megapixels each, they take a second; small ones wait for threads that decode no large ones."""
    clock = Clock()
    queue = Admission(Limits(queue=256, deadline_seconds=10), lambda: 0.01, clock, lambda: 1.0)
    with queue.admitted("large", 8):  # not yet known as such
        queue.learn("large", 8, 8)
        queue.check("small", 64)
        with pytest.raises(RefusedError, match="no result within 10 s"):
            queue.check("large", 3)
        queue.check("large", 2)
        queue.learn("mixed", 1, 4)
        queue.check("mixed", 20)  # five large ones, and five of the other client
        with pytest.raises(RefusedError):
            queue.check("mixed", 21)
        queue.learn("mixed", 0, 4)
        queue.check("mixed", 64)
        clock.now += 10.1
        queue.check("large", 64)  # what it sent lately says no more what it sends now


def test_of_at_most_a_queue_of_clients_it_is_remembered_what_they_send() -> None:
    queue = admission(4)
    for client in range(100):
        queue.learn(str(client), 1, 1)
    assert len(queue._large) == 4


def test_a_refused_client_that_comes_back_as_asked_finds_the_place_that_others_want() -> None:
    clock = Clock()
    queue = admission(4, clock=clock)
    with ExitStack() as inside:
        held = [inside.enter_context(ExitStack()) for _ in range(4)]
        for client, place in enumerate(held):
            place.enter_context(queue.admitted(str(client), 1))
        with pytest.raises(RefusedError):
            queue.check("patient")
        held[0].close()
        for _ in range(2):
            with pytest.raises(RefusedError):
                queue.check("0")  # a place is free, but it is kept
        clock.now += RETRY_SECONDS
        with pytest.raises(RefusedError):
            queue.check("0")  # it is after the other
        queue.check("patient")
        clock.now += 2 * RETRY_SECONDS
        clock.now += 0.1
        queue.check("5")  # it did not come: the place is free again


@pytest.mark.seconds
@pytest.mark.parametrize(("clients", "queue"), [(4, 3), (8, 4), (64, 32), (64, 128), (300, 128)])
def test_clients_that_obey_retry_after_get_equal_shares_and_leave_the_server_busy(clients: int, queue: int) -> None:
    """Closed-loop clients and a server of 100 images a second, simulated for a minute."""
    clock, seconds, served, finish = Clock(), 0.01, [0] * clients, 0.0
    room = admission(queue, seconds, clock)
    order = count()
    events: list[tuple[float, int, int, ExitStack | None]] = [(0.0, next(order), i, None) for i in range(clients)]
    while events[0][0] < 60:
        clock.now, _, client, place = heapq.heappop(events)
        if place is not None:
            place.close()
            served[client] += 1
        place = ExitStack()
        try:
            place.enter_context(room.admitted(str(client), 1))
        except RefusedError:
            heapq.heappush(events, (clock.now + RETRY_SECONDS, next(order), client, None))
        else:
            finish = max(finish, clock.now) + seconds
            heapq.heappush(events, (finish, next(order), client, place))
    jain = sum(served) ** 2 / (clients * sum(share**2 for share in served))
    assert jain >= 0.95
    assert sum(served) >= 0.98 * 60 / seconds


def test_a_client_is_an_address_and_on_this_machine_a_connection() -> None:
    assert client_of("10.0.0.1", 1) == client_of("10.0.0.1", 2) == client_of("::ffff:10.0.0.1", 3)
    assert client_of("10.0.0.1", 1) != client_of("10.0.0.2", 1)
    assert client_of("2001:db8::1", 1) == client_of("2001:db8::2", 1) != client_of("2001:db8:0:1::1", 1)
    assert client_of("fe80::1%eth0", 1) == client_of("fe80::1", 2)
    for here in ("127.0.0.1", "::1", ""):
        assert client_of(here, 1) != client_of(here, 2)
