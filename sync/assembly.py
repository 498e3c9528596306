"""Assembles the messages of a replication stream into transactions.

Decides which changes are one transaction, and its position and epoch. The epoch is that of the latest `fence` row in
the WAL. Does not know sockets and slots. **Transactions are returned in commit order, each with the epoch in which it
committed. `part_bytes_max` bounds the memory for a transaction of any size.**
"""

from typing import Final, assert_never

from regions.identity import Epoch
from regions.position import Position
from sync.change import Change, Operation, SyncError, Transaction
from sync.pgoutput import (
    UNCHANGED,
    Begin,
    Commit,
    Delete,
    Ignored,
    Insert,
    LogicalMessage,
    Relation,
    Row,
    Truncate,
    Update,
    parse_message,
)
from sync.registry import FENCE_TABLE

PART_BYTES_MAX: Final = 1024 * 1024
"""A larger transaction is sent in parts. PostgreSQL streams a transaction above logical_decoding_work_mem (64 MB). Here
the bound is the size of one batch of the consumer."""

TRACE_PREFIX: Final = "trace"


class UnexpectedMessage(SyncError):
    """A well-formed message that the protocol does not allow at this point."""


class Assembler:
    """Assembles the messages of one stream.

    Attributes:
        epoch: In force at this point of the stream; 0 before the first fence row if the consumer has nothing.
        first_fence_epoch: Epoch of the first fence row of the stream; None before that row.
    """

    def __init__(self, *, epoch: Epoch, part_bytes_max: int = PART_BYTES_MAX) -> None:
        """Start between two transactions, in the epoch of the consumer's position."""
        self.epoch = epoch
        self.first_fence_epoch: Epoch | None = None
        self._part_bytes_max = part_bytes_max
        self._relations: dict[int, Relation] = {}
        self._begin: Begin | None = None
        self._trace: str | None = None
        self._changes: list[Change] = []
        self._part_bytes = 0

    @property
    def between_transactions(self) -> bool:
        """Whether every message so far belongs to a transaction that was returned."""
        return self._begin is None

    def feed(self, data: bytes) -> Transaction | None:
        """Process one message; return the transaction, or the part of one, that it completes.

        Raises:
            MalformedMessage: The bytes are not a message.
            UnexpectedMessage: The protocol does not allow the message at this point.
        """
        message = parse_message(data)
        match message:
            case Begin():
                self._expect(message, inside=False)
                self._begin = message
                self._trace = None
            case Commit():
                return self._commit(message)
            case Relation():
                self._relations[message.oid] = message
            case Insert() | Update() | Delete() | Truncate():
                return self._add(message, len(data))
            case LogicalMessage():
                if message.transactional and message.prefix == TRACE_PREFIX:
                    self._trace = message.content.decode("ascii", errors="replace")
            case Ignored():
                pass
            case _:
                assert_never(message)
        return None

    def _commit(self, message: Commit) -> Transaction:
        begin = self._expect(message, inside=True)
        assert begin is not None
        transaction = Transaction(
            position=Position(self.epoch, message.end_lsn),
            commit_ts_us=message.commit_ts_us,
            trace=self._trace,
            changes=tuple(self._changes),
        )
        self._begin = None
        self._changes = []
        self._part_bytes = 0
        return transaction

    def _add(self, message: Insert | Update | Delete | Truncate, size_bytes: int) -> Transaction | None:
        begin = self._expect(message, inside=True)
        assert begin is not None
        part = self._part(begin) if self._part_bytes + size_bytes > self._part_bytes_max else None
        if isinstance(message, Truncate):
            for oid in message.oids:
                name = self._relation(oid).name
                self._changes.append(Change(table=name, op="truncate", key={}, row={}))
        else:
            self._changes.append(self._change(message))
        self._part_bytes += size_bytes
        return part

    def _part(self, begin: Begin) -> Transaction | None:
        if not self._changes:
            return None
        part = Transaction(
            # The commit record starts at final_lsn, and ends at the position of the transaction. No other transaction
            # and no progress has a position between the two.
            position=Position(self.epoch, begin.final_lsn + 1),
            commit_ts_us=begin.commit_ts_us,
            trace=self._trace,
            changes=tuple(self._changes),
            partial=True,
        )
        self._changes = []
        self._part_bytes = 0
        return part

    def _change(self, message: Insert | Update | Delete) -> Change:
        relation = self._relation(message.oid)
        op: Operation
        match message:
            case Insert():
                op, old, new = "insert", None, message.new
            case Update():
                op, old, new = "update", message.old, message.new
            case Delete():
                op, old, new = "delete", message.old, None
        row = {} if new is None else _columns(relation, new)
        before = row if old is None else _columns(relation, old)
        key = {
            column.name: value
            for column in relation.columns
            if column.key and (value := before.get(column.name)) is not None
        }
        if relation.name == FENCE_TABLE and op == "insert":
            self._enter_epoch(row)
        return Change(table=relation.name, op=op, key=key, row=row)

    def _enter_epoch(self, row: dict[str, str | None]) -> None:
        epoch = row.get("epoch")
        if epoch is None or not epoch.isdecimal():
            raise UnexpectedMessage(f"fence row without an epoch: {row!r}")
        self.epoch = int(epoch)
        if self.first_fence_epoch is None:
            self.first_fence_epoch = self.epoch

    def _relation(self, oid: int) -> Relation:
        relation = self._relations.get(oid)
        if relation is None:
            raise UnexpectedMessage(f"row of relation {oid}, which was not described")
        return relation

    def _expect(self, message: object, *, inside: bool) -> Begin | None:
        if (self._begin is not None) != inside:
            place = "outside of" if inside else "inside"
            raise UnexpectedMessage(f"{type(message).__name__} {place} a transaction")
        return self._begin


def _columns(relation: Relation, row: Row) -> dict[str, str | None]:
    if len(row) != len(relation.columns):
        raise UnexpectedMessage(f"{len(row)} values for {len(relation.columns)} columns of {relation.name}")
    return {column.name: value for column, value in zip(relation.columns, row, strict=True) if value is not UNCHANGED}
