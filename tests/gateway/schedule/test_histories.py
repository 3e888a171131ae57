"""Queue, leases, retries and stores as tables of histories; ``history.py`` beside this file tells how to read them."""

from __future__ import annotations

import pytest

from tests.gateway.schedule.history import check

LATE_BINDING = {
    "a request waits here until a slot is free": """
        replicas a
        submit 1       -> send 1 a
        submit 2       ->
        submit 3       ->
        finish 1       -> send 2 a
        spare 2        -> send 3 a
        broke 3        ->
    """,
    "slots that are not known are one, known ones are used up": """
        replicas a b:2
        submit 1       -> send 1 a
        submit 2       -> send 2 b
        submit 3       -> send 3 b
        submit 4       ->
        finish 3       -> send 4 b
    """,
    "slots are per model": """
        replicas a
        submit 1 m     -> send 1 a
        submit 2 n     -> send 2 a
        submit 3 m     ->
        submit 4 n     ->
        finish 2       -> send 4 a
    """,
    "a request for one model never blocks another's": """
        replicas a b
        tags b n       ->
        submit 1 m     -> send 1 a
        submit 2 m     ->
        submit 3 m     ->
        submit 4 n     -> send 4 a
        submit 5 n     -> send 5 b
        finish 5       ->
        finish 1       -> send 2 a
    """,
    "a slot is given in order of arrival": """
        replicas a
        submit 1       -> send 1 a
        submit 2       ->
        submit 3       ->
        submit 4       ->
        cancel 2       ->
        finish 1       -> send 3 a
        cancel 2       ->
        cancel 3       ->
        finish 3       -> send 4 a
    """,
    "more slots after a reload are used at once": """
        replicas a
        submit 1       -> send 1 a
        submit 2       ->
        submit 3       ->
        replicas a:3   -> send 2 a, send 3 a
    """,
    "fewer slots after a reload take nothing from those that run": """
        replicas a:3
        submit 1       -> send 1 a
        submit 2       -> send 2 a
        submit 3       -> send 3 a
        submit 4       ->
        replicas a:1   ->
        finish 1       ->
        finish 2       ->
        finish 3       -> send 4 a
    """,
    "what runs no model takes no slot and never waits": """
        replicas a
        submit 1             -> send 1 a
        submit 2             ->
        submit 3 m cloud     -> send 3 a
        submit 4 m show      -> send 4 a
        submit 5 - other     -> send 5 a
        submit 6 - blob      -> send 6 a
        submit 7 -           -> send 7 a
        finish 3             ->
        finish 7             ->
    """,
    "a stub of a cloud model takes no slot": """
        replicas a
        tags a m!      ->
        submit 1       -> send 1 a
        submit 2       -> send 2 a
        finish 1       ->
        finish 2       ->
    """,
}

RETRIES = {
    "a failed request goes to another replica": """
        submit 1          -> send 1 a
        fail 1 reset      -> send 1 b
        fail 1 busy       -> refuse 1 EXHAUSTED
    """,
    "each replica gets it once, whatever the fault": """
        replicas a b c
        submit 1          -> send 1 a
        fail 1 malformed  -> send 1 b
        fail 1 crashed    -> send 1 c
        fail 1 connect    -> refuse 1 EXHAUSTED
    """,
    "a request that comes back keeps its place": """
        replicas a b
        submit 1          -> send 1 a
        submit 2          -> send 2 b
        submit 3          ->
        submit 4          ->
        fail 1 reset      -> send 3 a
        finish 2          -> send 1 b
        finish 3          -> send 4 a
    """,
    "one whose other replicas are busy holds up nobody": """
        replicas a b
        submit 1          -> send 1 a
        submit 2          -> send 2 b
        fail 1 busy       ->
        submit 3          -> send 3 a
        submit 4          ->
        finish 3          -> send 4 a
        finish 2          -> send 1 b
    """,
    "of two that came back the older goes first": """
        replicas a b
        submit 1          -> send 1 a
        submit 2          -> send 2 b
        fail 2 reset      ->
        fail 1 reset      -> send 1 b, send 2 a
    """,
    "a closed idle connection may be met once": """
        replicas a
        submit 1          -> send 1 a
        fail 1 stale      -> send 1 a
        fail 1 stale      -> refuse 1 EXHAUSTED
    """,
    "once in a row": """
        replicas a b
        submit 1          -> send 1 a
        fail 1 stale      -> send 1 a
        fail 1 reset      -> send 1 b
        fail 1 stale      -> send 1 b
        fail 1 stale      -> refuse 1 EXHAUSTED
    """,
    "whichever of them came back first": """
        replicas a b
        submit 1          -> send 1 a
        submit 2          -> send 2 b
        fail 1 reset      ->
        fail 2 reset      -> send 1 b, send 2 a
    """,
    "also where others wait before and behind it": """
        replicas b:2 a
        submit 1          -> send 1 b
        submit 2          -> send 2 b
        submit 3          -> send 3 a
        fail 1 reset      ->
        submit 4          -> send 4 b
        submit 5          ->
        fail 2 reset      -> send 5 b
        finish 3          -> send 1 a
        finish 1          -> send 2 a
    """,
    "between those that came back and those that never left, too": """
        replicas a b c
        submit 1          -> send 1 a
        submit 2          -> send 2 b
        submit 3          -> send 3 c
        submit 4          ->
        fail 1 reset      -> send 4 a
        fail 2 reset      -> send 1 b
        fail 3 reset      -> send 2 c
        submit 5          ->
        finish 4          -> send 3 a
        finish 1          -> send 5 b
    """,
    "one that may go to the same replica again is still the oldest": """
        replicas a
        submit 1          -> send 1 a
        submit 2          ->
        fail 1 stale      -> send 1 a
    """,
}

BOUNDS = {
    "a full queue refuses, with an estimate": """
        replicas a
        limits 2 300      ->
        submit 1          -> send 1 a
        submit 2          ->
        submit 3          ->
        submit 4          -> refuse 4 QUEUE_FULL 15
        cancel 2          ->
        submit 5          ->
    """,
    "the bound is over all models": """
        replicas a
        limits 1 300      ->
        submit 1 m        -> send 1 a
        submit 2 n        -> send 2 a
        submit 3 m        ->
        submit 4 n        -> refuse 4 QUEUE_FULL 5
    """,
    "a full queue is no reason to refuse what a replica failed": """
        replicas a b
        limits 1 300      ->
        submit 1          -> send 1 a
        submit 2          -> send 2 b
        submit 3          ->
        fail 2 busy       -> send 3 b
        submit 4          -> refuse 4 QUEUE_FULL 5
        finish 1          -> send 2 a
    """,
    "no queue at all": """
        replicas a
        limits 0 300      ->
        submit 1          -> send 1 a
        submit 2          -> refuse 2 QUEUE_FULL 5
    """,
    "nobody waits longer than allowed": """
        replicas a
        limits 9 10       ->
        submit 1          -> send 1 a
        at 1
        submit 2          ->
        at 2
        submit 3 m        ->
        at 11
        tick              ->
        at 11.1
        tick              -> refuse 2 WAITED_TOO_LONG 15
        finish 1          -> send 3 a
        at 50
        tick              ->
    """,
    "a shorter limit counts at once": """
        replicas a
        submit 1          -> send 1 a
        submit 2          ->
        at 20
        limits 9 10       -> refuse 2 WAITED_TOO_LONG 10
    """,
    "the estimate follows what requests take": """
        replicas a:2
        submit 1          -> send 1 a
        at 40
        finish 1          ->
        limits 1 300      ->
        submit 2          -> send 2 a
        submit 3          -> send 3 a
        submit 4          ->
        submit 5          -> refuse 5 QUEUE_FULL 40
    """,
    "the estimate does not follow a single odd one": """
        replicas a
        submit 1          -> send 1 a
        at 40
        finish 1          ->
        submit 2          -> send 2 a
        finish 2          ->
        limits 0 300      ->
        submit 3          -> send 3 a
        submit 4          -> refuse 4 QUEUE_FULL 36
    """,
    "what takes no slot does not count for the estimate": """
        replicas a
        submit 1 - other  -> send 1 a
        at 40
        finish 1          ->
        limits 0 300      ->
        submit 2          -> send 2 a
        submit 3          -> refuse 3 QUEUE_FULL 5
    """,
    "the estimate is ten minutes at most": """
        replicas a
        submit 1          -> send 1 a
        at 9000
        finish 1          ->
        limits 0 300      ->
        submit 2          -> send 2 a
        submit 3          -> refuse 3 QUEUE_FULL 600
    """,
    "the estimate is a second at least": """
        replicas a
        submit 1          -> send 1 a
        finish 1          ->
        limits 0 300      ->
        submit 2          -> send 2 a
        submit 3          -> refuse 3 QUEUE_FULL 1
    """,
}

NOBODY = {
    "none configured": """
        replicas
        submit 1          -> refuse 1 NO_REPLICA
        submit 2 - other  -> refuse 2 NO_REPLICA
        submit 3 - store  -> refuse 3 NO_REPLICA
        submit 4 m show   -> refuse 4 NO_REPLICA
        submit 5 m cloud  -> refuse 5 NO_REPLICA
        submit 6 - blob   -> refuse 6 NO_REPLICA
    """,
    "the last one goes down while some wait": """
        replicas a
        submit 1          -> send 1 a
        submit 2          ->
        submit 3          ->
        probe a refused   ->
        probe a refused   -> a down, interrupt 1, refuse 2 NO_REPLICA, refuse 3 NO_REPLICA
        fail 1 hung       -> refuse 1 EXHAUSTED
        submit 4          -> refuse 4 NO_REPLICA
        probe a answered  ->
        probe a answered  -> a up
        submit 5          -> send 5 a
    """,
    "the last one is drained while some wait": """
        replicas a
        submit 1          -> send 1 a
        submit 2          ->
        drain a           -> refuse 2 NO_REPLICA
        finish 1          ->
        submit 3          -> refuse 3 NO_REPLICA
        resume a          ->
        submit 4          -> send 4 a
    """,
    "the last one is removed while some wait": """
        replicas a
        submit 1          -> send 1 a
        submit 2          ->
        replicas          -> refuse 2 NO_REPLICA
        finish 1          ->
    """,
    "the only one that has the model is down, and nobody else pretends to": """
        replicas a b
        tags b n          ->
        probe a refused   ->
        probe a refused   -> a down
        at 1
        submit 1 m        -> refresh
        tags b n          -> refuse 1 NO_REPLICA
        submit 2 n        -> send 2 b
    """,
    "one that was sent before does not ask again who has its model": """
        replicas a b
        tags b n          ->
        at 1
        submit 1 m        -> send 1 a
        probe a refused   ->
        fail 1 connect    -> a down, refuse 1 EXHAUSTED
    """,
    "one that waits only for a replica that goes down is refused": """
        replicas a b
        submit 1          -> send 1 a
        submit 2          -> send 2 b
        fail 1 busy       ->
        submit 3          -> send 3 a
        probe b refused   ->
        probe b refused   -> b down, interrupt 2, refuse 1 EXHAUSTED
    """,
}

MODELS = {
    "it goes where its model is": """
        replicas a b
        tags a n          ->
        tags b m          ->
        submit 1 m        -> send 1 b
        submit 2 n        -> send 2 a
        submit 3 m show   -> send 3 b
        submit 4 m cloud  -> send 4 b
    """,
    "a model that nobody is known to have is asked for, then Ollama answers": """
        replicas a b
        at 1
        submit 1 new      -> refresh
        submit 2 new      ->
        submit 3 other    ->
        tags a m          ->
        tags b m          -> send 1 a, send 2 b, send 3 a
        finish 1          ->
    """,
    "it is found where it has just been pulled": """
        replicas a b
        at 1
        submit 1 new      -> refresh
        at 1.1
        tags a m          ->
        tags b m new      -> send 1 b
        submit 2 new      ->
        finish 1          -> send 2 b
    """,
    "it goes on as soon as one is known to have it": """
        replicas a b
        at 1
        submit 1 new      -> refresh
        tags b new        -> send 1 b
    """,
    "a reading that began before does not count": """
        replicas a
        at 1
        tags a m          ->
        at 2
        submit 1 new      -> refresh
        ps a m            ->
        tags a m          -> send 1 a
    """,
    "it is not asked for longer than two seconds": """
        replicas a b
        at 1
        submit 1 new      -> refresh
        tags a m          ->
        at 2.9
        tick              ->
        at 3
        tick              -> send 1 a
    """,
    "who comes while the lists are read waits for the next reading": """
        replicas a
        at 1
        submit 1 new      -> refresh
        at 1.5
        submit 2 new      ->
        at 1.2
        tags a m          -> send 1 a, refresh
        at 1.7
        tags a m          ->
        finish 1          -> send 2 a
    """,
    "slots are counted for a model that nobody has, too": """
        replicas a
        at 1
        submit 1 new      -> refresh
        submit 2 new      ->
        tags a m          -> send 1 a
        finish 1          -> send 2 a
    """,
    "show waits for the lists, so that it does not miss a fresh model": """
        replicas a b
        at 1
        submit 1 new show -> refresh
        tags a m          ->
        tags b new        -> send 1 b
    """,
    "show does not wait for the slot that one before it waits for": """
        replicas a
        at 1
        submit 1 new      -> refresh
        submit 2 new      ->
        tags a m          -> send 1 a
        at 2
        submit 3 new show -> refresh
        tags a m          -> send 3 a
        finish 1          -> send 2 a
    """,
    "a cloud model need not be on any list": """
        replicas a
        submit 1 gone cloud -> send 1 a
    """,
    "a list that could not be read may have it": """
        replicas a b
        replicas a b c    ->
        at 1
        submit 1 new      -> refresh
        tags a m          ->
        tags b m          ->
        at 3
        tick              -> send 1 c
    """,
    "one that left does not stay asked for": """
        replicas a
        at 1
        submit 1 new      -> refresh
        cancel 1          ->
        at 4
        tick              ->
        submit 2 new      -> refresh
    """,
    "a model that was deleted is nowhere": """
        replicas a b
        tags a n          ->
        at 1
        submit 1 m        -> send 1 b
        submit 2 m        ->
        tags b n          -> refresh
        tags a n          -> send 2 a
    """,
}

STORE = {
    "all that changes the store goes to the first replica, and nothing waits for another": """
        replicas a b
        submit 1 m store  -> send 1 a
        submit 2 m store  -> send 2 a
        submit 3 n store  -> send 3 a
        finish 1          ->
        spare 2           ->
        finish 3          ->
    """,
    "changing the store takes no slot": """
        replicas a
        submit 1 m store  -> send 1 a
        submit 2 m        -> send 2 a
        submit 3 - blob   -> send 3 a
        submit 4 - blob   -> send 4 a
    """,
    "the next healthy one leads while the first is down": """
        replicas a b
        probe a refused   ->
        probe a refused   -> a down
        submit 1 - store  -> send 1 b
        probe a answered  ->
        probe a answered  -> a up
        submit 2 - blob   -> send 2 b
        finish 1          ->
        submit 3 - blob   -> send 3 a
    """,
    "a leader stays until the last that it changes is done": """
        replicas a b
        drain a           ->
        submit 1 - store  -> send 1 b
        submit 2 - store  -> send 2 b
        resume a          ->
        submit 3 - store  -> send 3 b
        finish 1          ->
        submit 4 - blob   -> send 4 b
        spare 3           ->
        submit 5 - store  -> send 5 b
        finish 2          ->
        finish 5          ->
        submit 6 - store  -> send 6 a
    """,
    "blobs keep no leader": """
        replicas a b
        drain a           ->
        submit 1 - blob   -> send 1 b
        resume a          ->
        submit 2 - blob   -> send 2 a
    """,
    "a drained leader finishes what it began and leads no more": """
        replicas a b
        submit 1 - store  -> send 1 a
        submit 2 - store  -> send 2 a
        drain a           ->
        submit 3 - blob   -> send 3 b
        submit 4 - store  -> send 4 b
        finish 1          ->
        finish 2          ->
        resume a          ->
        submit 5 - store  -> send 5 b
    """,
    "stores by name have leaders of their own, and the first replica's is meant where none is named": """
        replicas a%big b%small c%small
        submit 1 - store small  -> send 1 b
        submit 2 - store big    -> send 2 a
        submit 3 - store        -> send 3 a
        submit 4 - blob small   -> send 4 b
    """,
    "the leader of one store stays whatever is done to another": """
        replicas a%big b%small c%small
        drain b                 ->
        submit 1 - store small  -> send 1 c
        submit 2 - store big    -> send 2 a
        resume b                ->
        submit 3 - blob small   -> send 3 c
        finish 2                ->
        submit 4 - store small  -> send 4 c
        finish 1                ->
        finish 4                ->
        submit 5 - store small  -> send 5 b
    """,
    "a store that nobody has, or nobody who is usable, changes by nobody": """
        replicas a%big b%small
        submit 1 - store other  -> refuse 1 NO_REPLICA
        drain b                 ->
        submit 2 - store small  -> refuse 2 NO_REPLICA
    """,
    "who was given another store while it changed its own leads neither because of that": """
        replicas a b
        submit 1 - store        -> send 1 a
        replicas b%small a%small ->
        submit 2 - store small  -> send 2 b
        finish 1                ->
        finish 2                ->
        submit 3 - store small  -> send 3 b
    """,
    "what might have been done is not done again": """
        replicas a b
        submit 1 m store  -> send 1 a
        submit 2 m store  -> send 2 a
        fail 1 reset      -> refuse 1 EXHAUSTED
        submit 3 - blob   -> send 3 a
        fail 3 busy       -> refuse 3 EXHAUSTED
    """,
    "what was never sent is": """
        replicas a b
        submit 1 m store  -> send 1 a
        fail 1 stale      -> send 1 a
        fail 1 connect    -> send 1 b
    """,
    "what was never sent is not done by another store": """
        replicas a%big b%small
        submit 1 m store big  -> send 1 a
        fail 1 connect        -> refuse 1 EXHAUSTED
    """,
}

FROZEN = {
    "requests for a frozen model wait, and those for any other go on": """
        replicas a
        freeze m          ->
        submit 1 m        ->
        submit 2 n        -> send 2 a
        submit 3 m show   ->
        submit 4 m unload ->
        submit 5 n show   -> send 5 a
        submit 6 m store  -> send 6 a
        submit 7 - other  -> send 7 a
        freeze            -> send 1 a, send 3 a, send 4 a
    """,
    "those that were sent before go on, and who waits waits on": """
        replicas a
        submit 1 m        -> send 1 a
        submit 2 m        ->
        freeze m          ->
        finish 1          ->
        tags a m n        ->
        freeze n          -> send 2 a
    """,
    "who waited for a model that was deleted meanwhile is sent, so that Ollama says so": """
        replicas a
        freeze m          ->
        submit 1 m show   ->
        at 1
        tags a n          ->
        freeze            -> send 1 a
    """,
    "who comes back from a failed attempt waits, too": """
        replicas a b
        submit 1 m        -> send 1 a
        freeze m          ->
        fail 1 busy       ->
        freeze            -> send 1 b
    """,
    "who waits for a frozen model waits no longer than for any": """
        replicas a
        freeze m          ->
        submit 1 m        ->
        at 301
        tick              -> refuse 1 WAITED_TOO_LONG 10
    """,
    "nobody waits for a frozen model while the gateway stops": """
        replicas a b
        freeze m          ->
        submit 1 m        ->
        submit 2 n        -> send 2 a
        stop              -> refuse 1 STOPPING
    """,
}

OPERATION = {
    "a drained replica gets nothing and finishes what it has": """
        replicas a b
        submit 1          -> send 1 a
        drain a           ->
        submit 2          -> send 2 b
        submit 3          ->
        first 1           ->
        finish 1          ->
        resume a          -> send 3 a
    """,
    "a removed replica gets nothing and finishes what it has": """
        replicas a b
        submit 1          -> send 1 a
        replicas b        ->
        submit 2          -> send 2 b
        submit 3          ->
        finish 1          ->
        finish 2          -> send 3 b
    """,
    "what a removed replica fails goes on elsewhere": """
        replicas a b
        submit 1          -> send 1 a
        replicas b        ->
        probe a refused   ->
        fail 1 reset      -> send 1 b
    """,
    "the health of a removed replica is no news": """
        replicas a:2 b:2
        submit 1          -> send 1 a
        submit 2          -> send 2 a
        replicas b:2      ->
        fail 1 connect    -> send 1 b
        fail 2 connect    -> send 2 b
    """,
    "one that is removed and comes back still has its leases": """
        replicas a
        submit 1          -> send 1 a
        replicas          ->
        replicas a        ->
        submit 2          ->
        finish 1          -> send 2 a
    """,
    "a new address is a new replica": """
        replicas a
        submit 1          -> send 1 a
        probe a refused   ->
        probe a refused   -> a down, interrupt 1
        replicas a@9      ->
        at 1
        tags a m          ->
        submit 2          -> send 2 a
        fail 1 hung       -> refuse 1 EXHAUSTED
    """,
    "an added replica takes what waits": """
        replicas a
        submit 1          -> send 1 a
        submit 2          ->
        replicas a b      ->
        tags b m          -> send 2 b
    """,
    "enabled is not healthy": """
        replicas a b
        drain a           ->
        probe a refused   ->
        probe a refused   -> a down
        resume a          ->
        submit 1          -> send 1 b
    """,
    "healthy is not enabled": """
        replicas a b
        probe a refused   ->
        probe a refused   -> a down
        drain a           ->
        probe a answered  ->
        probe a answered  -> a up
        submit 1          -> send 1 b
    """,
    "stopping refuses what waits and what comes, and lets run what runs": """
        replicas a b
        submit 1          -> send 1 a
        submit 2          -> send 2 b
        submit 3          ->
        submit 4 - store  -> send 4 a
        submit 5 - store  -> send 5 a
        stop              -> refuse 3 STOPPING
        submit 6          -> refuse 6 STOPPING
        submit 7 - other  -> refuse 7 STOPPING
        finish 1          ->
        fail 2 reset      -> send 2 a
        finish 2          ->
        finish 4          ->
        finish 5          ->
    """,
    "those that wait are refused in order of arrival, over all models": """
        replicas a
        submit 1 m        -> send 1 a
        submit 2 n        -> send 2 a
        submit 3 m        ->
        submit 4 n        ->
        submit 5 m        ->
        submit 6 n        ->
        stop              -> refuse 3 STOPPING, refuse 4 STOPPING, refuse 5 STOPPING, refuse 6 STOPPING
    """,
    "while stopping a retry does not wait": """
        replicas a b
        submit 1          -> send 1 a
        submit 2          -> send 2 b
        stop              ->
        fail 2 reset      -> refuse 2 STOPPING
    """,
}

ALL = LATE_BINDING | RETRIES | BOUNDS | NOBODY | MODELS | STORE | FROZEN | OPERATION


@pytest.mark.parametrize("name", ALL)
def test_history(name: str) -> None:
    check(ALL[name])


def test_no_two_histories_have_one_name() -> None:
    assert len(ALL) == sum(map(len, (LATE_BINDING, RETRIES, BOUNDS, NOBODY, MODELS, STORE, FROZEN, OPERATION)))
