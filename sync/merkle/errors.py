"""The errors of this package that a caller handles. Errors of the caller itself are assertions."""

from sync.change import SyncError


class MerkleError(SyncError):
    """Base class of the errors of this package."""


class NotComparable(MerkleError):
    """The trees have different positions or different schemes, so that a difference would mean nothing."""


class PositionTooOld(MerkleError):
    """The changes since the position were forgotten, or were never recorded."""


class PositionNotReached(MerkleError):
    """The changes up to the position are not in the tree, or not in the recent changes."""


class PositionInsideBatch(MerkleError):
    """A batch has changes on both sides of the position, and they cannot be told apart."""


class InvalidLeaf(MerkleError):
    """A stored leaf has a number or a count that no tree of its depth has."""


class InvalidMessage(MerkleError):
    """Bytes are not a message of the comparison, or exceed a bound."""


class DigestCollision(MerkleError):
    """Two nodes differ, and no child of them. Either digests collide, or the other side answered from another tree."""
