"""Places that become more, or fewer, while some are held and some are waited for."""

import asyncio

from asyncq.worker.places import Places


async def waiting(places, count):
    """Let so many wait for a place."""
    waiters = [asyncio.create_task(places.take()) for _ in range(count)]
    await asyncio.sleep(0)
    return waiters


async def test_more_places_are_given_to_those_who_have_waited_longest():
    """At once, and no more than there are."""
    places = Places(1)
    assert await places.take() == "taken"
    first, second, third = await waiting(places, 3)
    places.resize(3)
    assert await first == await second == "taken"
    assert (places.held, places.waiting, third.done()) == (3, 1, False)
    places.free()
    assert await third == "taken"
    assert places.held == 3


async def test_fewer_places_are_given_away_only_when_enough_have_come_back():
    """What is held stays held."""
    places = Places(3)
    for _ in range(3):
        await places.take()
    (waiter,) = await waiting(places, 1)
    places.resize(1)
    assert places.held == 3
    places.free()
    places.free()
    await asyncio.sleep(0)
    assert (places.held, waiter.done()) == (1, False)
    places.free()
    assert await waiter == "taken"
    assert places.held == 1


async def test_a_waiter_that_has_given_up_costs_no_place():
    """Its turn goes to the next one."""
    places = Places(1)
    await places.take()
    first, second = await waiting(places, 2)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    places.resize(2)
    assert await second == "taken"
    assert (places.held, places.waiting) == (2, 0)
