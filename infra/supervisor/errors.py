"""The errors of commands and of the supervisor. Each message is one line for the user."""

from __future__ import annotations


class DeploymentError(Exception):
    """Base of all errors that end a command. The message is one line: what is wrong and what to do."""


class InvalidPlan(DeploymentError):
    """An option is invalid: a malformed or repeated region name, a number of voters other than 3 or 5, a bad value."""


class PlanMismatch(DeploymentError):
    """The data folder holds a deployment of another shape or of another version."""


class PortTaken(DeploymentError):
    """Another program or deployment uses a port of the plan."""


class DataFolderUnusable(DeploymentError):
    """The data folder cannot be created, written or entered."""


class AlreadyRunning(DeploymentError):
    """Another supervisor, or a guardian that does not end, owns this data folder."""


class NotRunning(DeploymentError):
    """No supervisor runs in this data folder, or it does not answer."""


class StartFailed(DeploymentError):
    """A process of the deployment did not become ready; the supervisor stops everything that it started."""


class UnknownTarget(DeploymentError):
    """A region or process name that this deployment does not have."""


class OrderRefused(DeploymentError):
    """An operator's order cannot be carried out; the message gives the reason."""
