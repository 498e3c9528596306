"""Client of one etcd endpoint: authentication, reads, compare-and-swap, watch and transfer of etcd's leadership.

Decides the time limit of one attempt, when a token is renewed, and which error a failure is. Does not know other
endpoints, retries and the meaning of values: ``coordination.py`` does.

Uses the gRPC stubs of aetcd. It does not use aetcd's client and watcher, because they neither renew tokens nor request
``hasleader``. The time limits were measured on three members (ARCHITECTURE.md, failover): an answer that takes longer
than 0.8 s does not come.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable
from dataclasses import dataclass
from typing import Any, cast

from regions.topology import Address

# gRPC's fork handlers crash the child if a call is in flight, and starting a program under another account forks. The
# handlers serve children that use gRPC; no child here does. gRPC reads this variable when it is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from aetcd import rpc as _untyped_rpc

ATTEMPT_S = 0.8
"""Time limit of a request. A put in flight while etcd's leader dies hangs for 6 s; a new put takes 0.5 to 0.85 s."""

AUTHENTICATE_S = 3.0
"""Time limit of authentication: etcd hashes the password with bcrypt, on a machine that may just start all
processes."""

_OPTIONS: tuple[tuple[str, int], ...] = (
    # Only these pings detect a frozen endpoint: 1 s until one is sent, 0.5 s until its answer is missed.
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 500),
    ("grpc.http2.ping_timeout_ms", 500),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 0),
    # By default gRPC waits up to two minutes between connection attempts; a member restarts within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Channels of one process must not share a connection that one of them has found dead.
    ("grpc.use_local_subchannel_pool", 1),
)

# The stubs are generated at run time and have no types; this module is their typed interface.
_rpc = cast("Any", _untyped_rpc)


class EtcdError(Exception):
    """An operation on an etcd endpoint failed."""


class EndpointFailed(EtcdError):
    """The endpoint refused, timed out, broke the connection or has no quorum. A write may have been applied."""


class AccessRefused(EtcdError):
    """The user or password is wrong, or the user lacks a permission. A retry does not help."""


class RevisionCompacted(EtcdError):
    """etcd has compacted the requested revision; read the current value."""


class _TokenRefused(EtcdError):
    """The member does not know the token, perhaps after a restart. The request was not applied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredValue:
    """A value and the revision that wrote it.

    Attributes:
        value: The value.
        mod_revision: Revision of the store at which it was written.
    """

    value: bytes
    mod_revision: int


class Endpoint:
    """A connection to one etcd member, which is opened at first use and kept."""

    def __init__(self, address: Address, user: str | None, password: str | None) -> None:
        self.address = address
        self._user = user
        self._password = password
        self._token: str | None = None
        self._authenticating = asyncio.Lock()
        self._channel: Any = _rpc.insecure_channel(str(address), options=_OPTIONS)
        self._kv: Any = _rpc.KVStub(self._channel)
        self._watch: Any = _rpc.WatchStub(self._channel)
        self._auth: Any = _rpc.AuthStub(self._channel)
        self._maintenance: Any = _rpc.MaintenanceStub(self._channel)
        self._cluster: Any = _rpc.ClusterStub(self._channel)

    async def close(self) -> None:
        """Close the connection; requests in flight fail."""
        await self._channel.close()

    async def read(self, key: str, *, linearizable: bool = True) -> tuple[StoredValue | None, int]:
        """Return the value of ``key``, and the store's revision.

        A linearizable read sees every write that completed before it. A serializable read returns what this member has,
        also if it is partitioned from the others.
        """
        request = _rpc.RangeRequest(key=key.encode(), serializable=not linearizable)
        answer = await self._ask(self._kv.Range, request)
        stored = [StoredValue(value=kv.value, mod_revision=kv.mod_revision) for kv in answer.kvs]
        return (stored[0] if stored else None), int(answer.header.revision)

    async def read_last(self, prefix: str, most: int) -> list[bytes]:
        """Return the values of the last ``most`` keys that begin with ``prefix``, in the order of the keys."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)

        request = _rpc.RangeRequest(
            key=prefix.encode(),
            range_end=end.encode(),
            limit=most,
            sort_order=_rpc.RangeRequest.DESCEND,
            sort_target=_rpc.RangeRequest.KEY,
            serializable=True,
        )
        return [kv.value for kv in reversed((await self._ask(self._kv.Range, request)).kvs)]

    async def compare_and_swap(self, key: str, value: bytes, expected_revision: int) -> int | None:
        """Store ``value`` if ``key`` was last written at ``expected_revision`` (0: it does not exist).

        Returns:
            The revision that stored it; None if the key had another revision.

        Raises:
            EndpointFailed: The answer was lost; the value may or may not be stored.
        """
        compare = _rpc.Compare(
            key=key.encode(),
            target=_rpc.Compare.MOD,
            result=_rpc.Compare.EQUAL,
            mod_revision=expected_revision,
        )
        put = _rpc.RequestOp(request_put=_rpc.PutRequest(key=key.encode(), value=value))

        request = _rpc.TxnRequest(compare=[compare], success=[put], failure=[])
        answer = await self._ask(self._kv.Txn, request)
        return int(answer.header.revision) if answer.succeeded else None

    async def put(self, key: str, value: bytes) -> int:
        """Store ``value`` unconditionally, and return the revision.

        Raises:
            EndpointFailed: The answer was lost; the value may or may not be stored.
        """
        request = _rpc.PutRequest(key=key.encode(), value=value)
        return int((await self._ask(self._kv.Put, request)).header.revision)

    async def watch(self, key: str, start_revision: int) -> AsyncGenerator[StoredValue]:
        """Yield each value written to ``key`` at or after ``start_revision``, in order, until the watch fails.

        Raises:
            RevisionCompacted: etcd has compacted ``start_revision``.
            EndpointFailed: The stream broke; the caller resumes after the last revision that it received.
        """
        await self._authenticated(None)
        create = _rpc.WatchCreateRequest(
            key=key.encode(), start_revision=start_revision, filters=[_rpc.WatchCreateRequest.NODELETE]
        )
        # Without hasleader, a member that has lost the quorum keeps the watch open and sends nothing.
        call = self._watch.Watch(metadata=(*self._metadata(), ("hasleader", "true")))
        try:
            await self._bounded(call.write(_rpc.WatchRequest(create_request=create)))
            answer = await self._bounded(call.read())
            while True:
                self._refuse_cancelled(answer)
                for event in answer.events:
                    yield StoredValue(value=event.kv.value, mod_revision=event.kv.mod_revision)
                answer = await self._call(call.read())
        except _TokenRefused as error:
            self._token = None
            raise EndpointFailed(str(error)) from error
        finally:
            call.cancel()

    async def member_and_leader(self) -> tuple[int, int]:
        """Return the id of this member and the id of etcd's leader, 0 if there is none."""
        request = _rpc.StatusRequest()
        answer = await self._ask(self._maintenance.Status, request)
        return int(answer.header.member_id), int(answer.leader)

    async def voters(self) -> dict[int, str]:
        """Return the names of the voting members by their ids."""
        request = _rpc.MemberListRequest()
        members = (await self._ask(self._cluster.MemberList, request)).members
        return {int(one.ID): str(one.name) for one in members if not getattr(one, "isLearner", False)}

    async def move_leader(self, member: int) -> None:
        """Transfer etcd's leadership from this member to another one.

        Raises:
            EndpointFailed: This member does not lead, or the other one is too far behind.
        """
        request = _rpc.MoveLeaderRequest(targetID=member)
        await self._ask(self._maintenance.MoveLeader, request)

    async def authenticate(self) -> bool:
        """Fetch a token.

        Returns:
            False if authentication is not enabled in the cluster yet.

        Raises:
            AccessRefused: The user or password is wrong.
        """
        request = _rpc.AuthenticateRequest(name=self._user, password=self._password)
        try:
            answer = await self._call(self._auth.Authenticate(request, timeout=AUTHENTICATE_S))
        except EndpointFailed as error:
            if "authentication is not enabled" in str(error):
                return False
            raise
        self._token = answer.token
        return True

    async def enable_authentication(self) -> None:
        """Create the user and enable authentication in the cluster; can be repeated.

        It is no error if another region or an earlier run has done a step. The caller authenticates afterwards, which
        verifies the result.
        """
        steps = (
            lambda: self._auth.UserAdd(
                _rpc.AuthUserAddRequest(name=self._user, password=self._password), timeout=AUTHENTICATE_S
            ),
            lambda: self._auth.RoleAdd(_rpc.AuthRoleAddRequest(name="root"), timeout=ATTEMPT_S),
            lambda: self._auth.UserGrantRole(
                _rpc.AuthUserGrantRoleRequest(user=self._user, role="root"), timeout=ATTEMPT_S
            ),
            lambda: self._auth.AuthEnable(_rpc.AuthEnableRequest(), timeout=ATTEMPT_S),
        )
        for step in steps:
            try:
                await self._call(step())
            except (EndpointFailed, _TokenRefused) as error:
                if not _is_already_done(str(error)):
                    raise EndpointFailed(str(error)) from error

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return () if self._token is None else (("token", self._token),)

    async def _ask(self, method: Any, request: Any) -> Any:  # noqa: ANN401 - protobuf without types
        return await self._authenticated(
            lambda: self._call(method(request, timeout=ATTEMPT_S, metadata=self._metadata()))
        )

    async def _authenticated(self, attempt: Any) -> Any:  # noqa: ANN401 - protobuf without types
        """Run ``attempt`` with a token, and once more with a new token if the member does not know the first."""
        for last in (False, True):
            if self._user is not None and self._token is None:
                async with self._authenticating:
                    if self._token is None and not await self.authenticate():
                        raise EndpointFailed(f"{self.address}: authentication is not enabled yet")
            if attempt is None:
                return None
            try:
                return await attempt()
            except _TokenRefused as error:
                if self._user is None:
                    raise AccessRefused(f"{error}: etcd requires a user, and none is configured") from error
                self._token = None
                if last:
                    raise EndpointFailed(str(error)) from error
        raise AssertionError("unreachable: the last round returns or raises")

    async def _bounded(self, call: Awaitable[Any]) -> Any:  # noqa: ANN401 - protobuf without types
        try:
            async with asyncio.timeout(ATTEMPT_S):
                return await self._call(call)
        except TimeoutError as error:
            raise EndpointFailed(f"{self.address}: no answer within {ATTEMPT_S} s") from error

    async def _call(self, call: Awaitable[Any]) -> Any:  # noqa: ANN401 - protobuf without types
        try:
            return await call
        except _untyped_rpc.AioRpcError as error:
            raise self._named(cast("Any", error)) from error

    def _named(self, error: Any) -> EtcdError:  # noqa: ANN401 - gRPC without types
        code, details = error.code(), str(error.details())
        text = f"{self.address}: {details}"
        status = _rpc.StatusCode
        if code == status.UNAUTHENTICATED or _is_token_error(details):
            return _TokenRefused(text)
        if code == status.PERMISSION_DENIED or "invalid user ID or password" in details:
            return AccessRefused(text)
        if code == status.OUT_OF_RANGE and "compacted" in details:
            return RevisionCompacted(text)
        return EndpointFailed(text)

    def _refuse_cancelled(self, answer: Any) -> None:  # noqa: ANN401 - protobuf without types
        # When the member shuts down, the stream ends with an end marker, which is no message.
        if not hasattr(answer, "canceled"):
            raise EndpointFailed(f"{self.address}: the watch ended")
        if answer.compact_revision:
            raise RevisionCompacted(f"{self.address}: compacted at {answer.compact_revision}")
        if answer.canceled:
            if _is_token_error(answer.cancel_reason) or "permission" in answer.cancel_reason:
                raise _TokenRefused(f"{self.address}: {answer.cancel_reason}")
            raise EndpointFailed(f"{self.address}: watch cancelled: {answer.cancel_reason}")


def _is_token_error(details: str) -> bool:
    """Return whether a new token helps: the token expired, users changed, or authentication was just enabled."""
    return any(
        text in details for text in ("invalid auth token", "revision of auth store is old", "user name is empty")
    )


def _is_already_done(details: str) -> bool:
    return any(text in details for text in ("already exists", "user name is empty", "already granted"))
