"""Runs one PostgreSQL member of the ledger: its process, its files and its SQL statements.

The modules are ``process`` (a process that outlives its agent), ``record`` (state that survives a crash), ``settings``
(every PostgreSQL setting), ``ledger`` (SQL), ``overrides`` (settings that weaken commits), ``supervision`` (start and
stop) and ``failover_member`` (freeze, promote, follow, rewind, copy).
"""

from regions.member.errors import MemberError, MemberFailed, MemberUnusable, QuorumUnknown
from regions.member.ledger import Ledger, LedgerState, SettingOverride, Slot, Standby
from regions.member.process import Account
from regions.member.record import MemberRecord
from regions.member.settings import MemberSettings, quorum_names
from regions.member.supervision import DataState, Member

__all__ = [
    "Account",
    "DataState",
    "Ledger",
    "LedgerState",
    "Member",
    "MemberError",
    "MemberFailed",
    "MemberRecord",
    "MemberSettings",
    "MemberUnusable",
    "QuorumUnknown",
    "SettingOverride",
    "Slot",
    "Standby",
    "quorum_names",
]
