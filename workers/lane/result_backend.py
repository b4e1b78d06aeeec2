"""Celery's result backend on a writer. It stores only results that no commit has stored."""

from __future__ import annotations

from typing import Any, cast

from peerlane.config import names
from peerlane.config.celery.result_backend import OwnBackend
from peerlane.workers.lane.taking import TAKEN, TakenMessage


class CommitBackend(OwnBackend):
    """Stores only what no commit has stored, only once, and only for requests of this gateway's lane."""

    #: Set by peerlane.workers.gateway.
    gateway: str = ""

    def _create_client(self, **params: Any) -> Any:
        return cast("Any", self).app.shared_redis.client

    @property
    def _expires(self) -> int:
        return int(cast("Any", self).expires)

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Store a result that has no commit: a failure before the writer saw the request, or an observer's report."""
        taken = cast("TakenMessage | None", getattr(request, TAKEN, None))
        settled = taken is not None and taken.outcome is not None
        if settled or not names.is_request_id(self.gateway, task_id):
            return result
        return super().store_result(task_id, result, state, None, request=request, **kwargs)

    def set(self, key: str | bytes, value: bytes, expires: float | None = None, **retry_policy: Any) -> Any:
        """Store a value with a commit record's TTL, unless a commit record or a tombstone is there."""
        del expires
        return self.ensure(self._set_once, (key, value), **retry_policy)

    def _set_once(self, key: str | bytes, value: bytes) -> None:
        if self.client.set(key, value, ex=self._expires, nx=True):
            for channel in names.result_channels(key.decode() if isinstance(key, bytes) else key):
                self.client.publish(channel, value)
