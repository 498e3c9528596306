"""Test fixture for the models: three members on a network under virtual time, without agents."""

from uuid import UUID

from infra.simulation.member import Member
from infra.simulation.network import Network
from infra.simulation.scheduler import Scheduler
from infra.simulation.wal import Entry
from regions.identity import RegionName

EU, US, AP = RegionName("eu"), RegionName("us"), RegionName("ap")


class NullListener:
    """A listener that ignores everything."""

    def wal_received(self, standby: Member, source: Member) -> None:
        pass

    def wal_lost(self, member: Member, before: int) -> None:
        pass


class MemberCluster:
    """Three members: `eu` is the primary of epoch 1, and the others follow it."""

    def __init__(self, *, seed: int = 1) -> None:
        self.scheduler = Scheduler(seed)
        self.network = Network(self.scheduler, rtt_s=0.08, jitter_s=0.0, loss=0.0)
        self.members: dict[RegionName, Member] = {}
        for index, region in enumerate((EU, US, AP)):
            member = Member(self.scheduler, self.network, region, 1 << index, NullListener())
            member.peers = self.members
            self.members[region] = member
        self.eu, self.us, self.ap = (self.members[region] for region in (EU, US, AP))
        self.eu.initialise(1)
        for standby in (self.us, self.ap):
            standby.copy(self.eu)
            standby.start_standby()
            standby.follow(EU)
        self.eu.set_standby_names((US, AP), 1)
        self.run(2)

    def run(self, seconds: float) -> None:
        self.scheduler.run_until(self.scheduler.now + seconds)

    def write(self, member: Member, key: int) -> list[bool]:
        """Begin to commit a row; the outcome is appended to the returned list when the wait ends."""
        outcome: list[bool] = []
        member.write(Entry("row", member.epoch, key=key), outcome.append)
        return outcome

    def fence(self, member: Member) -> list[bool]:
        outcome: list[bool] = []
        member.write(Entry("fence", member.epoch, fence_id=UUID(int=member.epoch)), outcome.append)
        return outcome

    def isolate(self, region: RegionName) -> None:
        for other in self.members:
            if other != region:
                self.network.cut(region, other)
                self.network.cut(other, region)

    def freeze(self, member: Member) -> None:
        member.unfollow()
        member.disconnect()


def keys(member: Member) -> set[int]:
    return set(member.wal.keys)
