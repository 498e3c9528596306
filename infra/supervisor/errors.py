"""What can go wrong with a deployment as a whole, each as one clear line."""

from __future__ import annotations


class DeploymentError(Exception):
    """Base of all errors that end a command with one line: what is wrong and what to do."""


class InvalidPlan(DeploymentError):
    """The wish cannot be a deployment: unknown or doubled region, a number that makes no quorum."""


class PlanMismatch(DeploymentError):
    """The data folder holds a deployment of another shape or of another version."""


class PortTaken(DeploymentError):
    """A port of the plan is used by a program that is not ours."""


class DataFolderUnusable(DeploymentError):
    """The data folder cannot be created, written or entered."""


class AlreadyRunning(DeploymentError):
    """Another supervisor owns this data folder."""


class NotRunning(DeploymentError):
    """No supervisor answers for this data folder."""


class StartFailed(DeploymentError):
    """A process of the deployment did not become ready; everything that was started is stopped again."""


class UnknownTarget(DeploymentError):
    """A region or process name that this deployment does not have."""


class OrderRefused(DeploymentError):
    """An operator's order cannot be carried out; the text says why."""
