"""One PostgreSQL member of the ledger: its process, its files and what is said to it in SQL.

Import from here; the modules inside are ``process`` (a process that outlives its agent), ``record`` (what
survives a crash), ``settings`` (every PostgreSQL setting), ``ledger`` (SQL), ``overrides`` (what weakens its commits),
``supervision`` and ``moving`` (what a member does when its leader changes).
"""

from regions.member.errors import MemberError, MemberFailed, MemberUnusable, QuorumUnknown
from regions.member.ledger import Ledger, LedgerState, Override, Slot, Standby
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
    "Override",
    "QuorumUnknown",
    "Slot",
    "Standby",
    "quorum_names",
]
