"""A lane whose messages are taken together: real messages, a real consumer and writer, and a note of each step."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from fuzz_lane import FuzzedLane
from keys import some_key
from servers import RedisServer
from waiting import PATIENCE

from peerlane.config import names
from peerlane.tasks.errors import PeerlaneError
from peerlane.tasks.wire import commit_record
from peerlane.workers.dataplane import Change
from peerlane.workers.store.procedures import Answer
from peerlane.workers.store.store import Commit


class GroupedLane(FuzzedLane):
    """``before_commit`` is called before each commit of a group, in place of what happens meanwhile."""

    def __init__(self, server: RedisServer, directory: Path) -> None:
        super().__init__(server, directory)
        #: Sizes of the groups committed, and of the changes applied, in order.
        self.commits: list[int] = []
        self.applied: list[int] = []
        self.before_commit: Callable[[], object] = lambda: None
        store, plane = self.writer.store, self.writer.plane
        commit_many, apply = store.commit_many, plane.apply

        def watched_commit(commits: Sequence[Commit]) -> list[Answer]:
            if len(commits) > 1:  # a request that is carried out alone is no group
                self.commits.append(len(commits))
                self.before_commit()
            return commit_many(commits)

        def watched_apply(changes: Sequence[Change]) -> None:
            if changes:
                self.applied.append(len(changes))
            apply(changes)

        store.commit_many = watched_commit
        plane.apply = watched_apply
        self._template = json.loads(self.captured(1)[0])

    def send(self, *wishes: dict[str, Any], bulk: bool = False, redelivered: bool = False) -> list[str]:
        """Queue requests, deletes where ``delete`` is among the arguments; their ids.

        ``unheard`` among them: without a header that tells the deadline.
        """
        sent: list[str] = []
        for wish in wishes:
            arguments = {"gateway": self.name, "public_key": some_key(), **wish}
            task = names.DELETE_PEER if arguments.pop("delete", False) else names.CREATE_PEER
            message = json.loads(json.dumps(self._template))
            identity = names.request_id(self.name, arguments.pop("id", some_key()[:20].encode().hex()))
            message["headers"] |= {"id": identity, "task": task} | ({"redelivered": True} if redelivered else {})
            message["headers"]["deadline"] = arguments.get("deadline")
            if arguments.pop("unheard", False):  # as a client sends it that knows no such header
                del message["headers"]["deadline"]
            message["body"] = json.dumps([[], arguments, {}])
            message["properties"] |= {"body_encoding": None, "delivery_tag": identity}
            self.redis.lpush(self.bulk if bulk else self.queue, json.dumps(message))
            sent.append(identity)
        return sent

    def send_list(self, wishes: Sequence[dict[str, Any]]) -> str:
        """Queue a list of creates; its request id."""
        message = json.loads(json.dumps(self._template))
        identity = names.request_id(self.name, some_key()[:20].encode().hex())
        message["headers"] |= {"id": identity, "task": names.CREATE_PEERS}
        message["body"] = json.dumps([[], {"gateway": self.name, "wishes": list(wishes)}, {}])
        message["properties"] |= {"body_encoding": None, "delivery_tag": identity}
        self.redis.lpush(self.bulk, json.dumps(message))
        return identity

    @property
    def channel(self) -> Any:
        """Where the lane is read."""
        return self._channel

    @property
    def service(self) -> Any:
        """The gateway's service."""
        return self._worker.service

    @property
    def bulk(self) -> str:
        return names.bulk_queue(self.name)

    def wake(self, queue: str | None = None) -> None:
        """What BRPOP and the event loop do: pop one message, take the others with it, acknowledge."""
        chosen = queue or self.queue
        raw = cast("bytes", self.redis.rpop(chosen))
        self._channel._take_with_others(chosen, raw)  # noqa: SLF001 - what is tested
        for callback in self._consumer.hub._pop_ready():  # noqa: SLF001 - what the event loop does next
            callback()

    def wake_and_hear(self, count: int) -> set[str]:
        """``wake``; the channels on which that many outcomes are published."""
        with self.redis.pubsub(ignore_subscribe_messages=True) as heard:
            heard.psubscribe(names.result_key(f"{self.name}.*"))
            heard.get_message(timeout=PATIENCE)
            self.wake()
            return {cast("Any", heard.get_message(timeout=PATIENCE))["channel"].decode() for _ in range(count)}

    def outcome(self, request_id: str) -> dict[str, Any] | PeerlaneError:
        stored = cast("bytes | None", self.redis.get(names.result_key(request_id)))
        assert stored is not None, f"{request_id} has no outcome"
        try:
            return commit_record.decode(stored)
        except PeerlaneError as error:
            return error

    def kinds(self, requests: Sequence[str]) -> list[object]:
        """What became of each: its outcome, or the error's class."""
        answers = [self.outcome(request) for request in requests]
        return [type(each) if isinstance(each, PeerlaneError) else each["outcome"] for each in answers]
