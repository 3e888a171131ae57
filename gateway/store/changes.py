"""What carrying out an operation means in one store, from the model that it replaces to the list that shows it."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext, suppress
from typing import Final, Protocol

from corral.gateway.store.leaders import Done, Leaders, Site, Work
from corral.gateway.store.letting import Freezer, Letting
from corral.gateway.store.lines import Line
from corral.gateway.store.lists import Lists
from corral.gateway.store.mutation import Act, Mutation, deletion_of
from corral.gateway.store.previous import Keeping, Previous
from corral.gateway.store.removals import Removals
from corral.gateway.store.requests import StoreRequests
from corral.gateway.store.said import Said, StoreError

ABSENT: Final = Said(404, b'{"error":"model not found"}', is_absent=True)


class Ear(Protocol):
    """Who wants to know how it goes in one store."""

    def begun(self, replica_id: str) -> None:
        """That replica is asked now; what was heard before is past."""
        ...

    def hear(self, line: Line) -> None: ...


class Changes:
    """Carries them out. Whose turn it is, it does not ask."""

    def __init__(
        self,
        leaders: Leaders,
        requests: StoreRequests,
        lists: Lists,
        letting: Letting,
        freezer: Freezer,
        previous: Previous,
    ) -> None:
        self._leaders = leaders
        self._requests = requests
        self._lists = lists
        self._letting = letting
        self._freezer = freezer
        self._previous = previous
        self._removals = Removals()

    async def carry_out(self, mutation: Mutation, store: str, ear: Ear, *, insist: bool) -> Done:
        """Returns once the store's list shows it. Raises StoreError.

        ``insist``: ask the replica even where its store lacks the model that this is about.
        """
        if mutation.act is Act.DELETE:
            return await self._delete(mutation, store, ear, insist=insist)
        keeping = Keeping(self._previous, store, mutation.replaces)

        async def work(site: Site) -> Said:
            if not insist and not await self._has(site, mutation.needs):
                return ABSENT
            await keeping.keep(site.replica)
            return await self._ask(site, mutation, ear)

        try:
            done = await self._run(mutation, store, work)
            if done.said.ok and mutation.act is not Act.PUSH:
                await self._settle(done, store, keeping)
            return done
        finally:
            keeping.give_up()

    async def remove_own(self, store: str, name: str, *, is_last: bool = True) -> None:
        """Remove a name of the gateway's own. ``is_last``: perhaps no other name has the same layers. Raises
        StoreError."""

        async def work(site: Site) -> Said:
            site.is_asked = True
            with self._removals.one(store) if is_last else nullcontext():
                return await self._requests.change(site.replica, deletion_of(name), lambda line: None)

        done = await self._leaders.run(Act.DELETE, store, name, work)
        if not done.said.ok and done.said.status != 404:
            raise StoreError(done.said.status, done.said.message, done.replica.id)
        await self._lists.tell(done.replica, await self._lists.read(done.replica))

    async def _run(self, mutation: Mutation, store: str, work: Work) -> Done:
        """A pull that had a removal beside it is done once more."""
        mark = self._removals.mark(store)
        done = await self._leaders.run(mutation.act, store, mutation.model, work)
        if mutation.act is Act.PULL and done.said.ok and await self._removals.any_since(store, mark):
            return await self._leaders.run(mutation.act, store, mutation.model, work)
        return done

    async def _ask(self, site: Site, mutation: Mutation, ear: Ear) -> Said:
        def hear(line: Line) -> None:
            self._leaders.heard(site.replica)
            ear.hear(line)

        site.is_asked = True
        ear.begun(site.replica.id)
        return await self._requests.change(site.replica, mutation, hear)

    async def _has(self, site: Site, model: str | None) -> bool:
        """As far as that is known."""
        page = None if model is None else await self._lists.read(site.replica)
        return page is None or model is None or page.find(model) is not None

    async def _settle(self, done: Done, store: str, keeping: Keeping) -> None:
        """The list is read anew; what was replaced leaves every memory before anybody can ask for what replaced it."""
        page = await self._lists.read(done.replica)
        with ExitStack() as stack:
            if keeping.model is not None and keeping.is_replaced_in(page):
                names = self._letting.names(keeping.model)
                stack.enter_context(self._freezer.frozen(keeping.model))
                await self._letting.let_go(store, names, keeping.name)
            await self._lists.tell(done.replica, page)
        if keeping.is_same_in(page):
            with suppress(StoreError):
                await self.remove_own(store, keeping.name, is_last=False)
                keeping.removed()

    async def _delete(self, mutation: Mutation, store: str, ear: Ear, *, insist: bool) -> Done:
        model = mutation.model
        with ExitStack() as frozen:

            async def work(site: Site) -> Said:
                page = None if model is None else await self._lists.read(site.replica)
                entry = None if page is None or model is None else page.find(model)
                if page is not None and entry is None and not insist:
                    return ABSENT
                if model is not None and (entry is not None or page is None):
                    names = self._letting.names(model)
                    frozen.enter_context(self._freezer.frozen(model))
                    # before: afterwards an Ollama knows no model of that name
                    await self._letting.let_go(store, names, model if entry is None else entry.spelled)
                with self._removals.one(store):
                    return await self._ask(site, mutation, ear)

            done = await self._leaders.run(Act.DELETE, store, model, work)
            if done.said.ok:
                await self._lists.tell(done.replica, await self._lists.read(done.replica))
            return done
