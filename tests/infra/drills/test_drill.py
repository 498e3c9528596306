"""Tests drill files: those that come with Palaver are valid, and an invalid one is refused with one line."""

from pathlib import Path

import pytest

from infra.drills.drill import InvalidDrill, catalogue, find_drill, load_drill

EXPECT = """
[expect.fewest]
before = { follower = 1 }
during = {}
after = { follower = 1 }
"""

SOUND = f"""
title = "A title"
hypothesis = "A hypothesis."
{EXPECT}
[[method]]
do = "kill"
as = "dead"

[[method]]
do = "restart"
target = "dead"
"""

REFUSED = """
[[expect.refused]]
since = "a"
until = "b"
"""


def test_every_drill_of_the_catalogue_is_valid_and_has_a_hypothesis() -> None:
    drills = catalogue()
    assert len(drills) >= 25
    for name, drill in drills.items():
        assert drill.name == name
        assert drill.hypothesis.endswith("."), name


def test_a_drill_restarts_each_region_that_it_kills() -> None:
    for name, drill in catalogue().items():
        killed = sum(step.do == "kill" and step.process is None for step in drill.method)
        restarted = sum(step.do == "restart" for step in drill.method)
        assert killed == restarted, name


def test_a_drill_mends_each_disk_that_it_fills_or_stalls() -> None:
    for name, drill in catalogue().items():
        faulty = {step.named or step.target for step in drill.method if step.do in ("fill-disk", "stall-disk")}
        assert faulty == {step.target for step in drill.method if step.do == "mend-disk"}, name
        assert drill.needs_disks == bool(faulty), name


def test_a_drill_declares_least_numbers_for_each_edge_that_clients_prefer() -> None:
    for name, drill in catalogue().items():
        preferred = {"follower", "other-follower"}
        if drill.load.edges == "all":
            preferred.add("leader")
        fewest = drill.expect.fewest
        assert set(fewest.before) == set(fewest.after) == preferred, name
        # A drill without least numbers during the fault expects refusals.
        assert fewest.during or drill.expect.refused, name


def test_a_drill_needs_no_writes_during_a_fault_that_stops_every_edge() -> None:
    """Writes after the repair are no evidence about the fault."""
    owes_none = {name for name, drill in catalogue().items() if not drill.expect.fewest.during}
    assert owes_none == {"cut-everyone", "restart-all", "two-of-three-lost", "full-disk-followers"}


def test_a_drill_is_found_by_name_and_by_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SOUND)
    assert find_drill(str(path)).name == "mine"
    assert find_drill("kill-region").short
    with pytest.raises(InvalidDrill, match="there is no drill 'kill-nobody'; see `palaver drill list`"):
        find_drill("kill-nobody")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("title = ", "is not TOML"),
        (SOUND + "nonsense = 1\n", "nonsense: Extra inputs"),
        (SOUND.replace('"kill"', '"hug"'), "method.0.do"),
        (
            SOUND.replace('target = "dead"', 'target = "deaf"'),
            "step 2: 'deaf' is no role, and no earlier step named it",
        ),
        (SOUND + '[[method]]\ndo = "until-phase"\n', "until-phase needs a phase"),
        (SOUND + '[[method]]\ndo = "until-said"\n', "until-said needs `says`"),
        (SOUND + '[[method]]\ndo = "heal"\nsays = "x"\n', "and no other action has it"),
        (SOUND + '[[method]]\ndo = "sleep"\n', "sleep needs seconds"),
        (SOUND + '[[method]]\ndo = "drift"\nrate = 0.1\n', "drift needs seconds"),
        (SOUND + '[[method]]\ndo = "drift"\nseconds = 1\n', "drift needs a rate"),
        (SOUND + '[[method]]\ndo = "clock"\n', "clock needs offset_s"),
        (SOUND + '[[method]]\ndo = "clock"\noffset_s = 1e9\n', "method.2.offset_s"),
        (SOUND + '[[method]]\ndo = "promote"\n', "step 3: promote needs the name of a region that was killed"),
        (SOUND + '[[method]]\ndo = "promote"\ntarget = "dead"\n', "step 3: promote needs"),
        (
            SOUND.replace('"restart"', '"restart"\nleads_etcd = true'),
            "leads_etcd is only for the kill of a whole region",
        ),
        (SOUND.replace('"kill"', '"kill"\nprocess = "view"\nleads_etcd = true'), "leads_etcd is only for the kill"),
        (
            SOUND + '[[method]]\ndo = "fill-disk"\nprocess = "ledger"\n',
            "fill-disk acts on a region, not on one process",
        ),
        (SOUND + '[[method]]\ndo = "mend-disk"\nstall_ms = 300\n', "stall_ms is only for stall-disk"),
        (SOUND + '[[method]]\ndo = "stall-disk"\nstall_ms = 20000\n', "method.2.stall_ms"),
        (f'title = "T"\nhypothesis = "H."\nmethod = []\n{EXPECT}', "method"),
        (f'title = "T"\nhypothesis = "H."\n{EXPECT}[[method]]\ndo = "until-writes"\n', "every step only waits"),
        (SOUND.replace(EXPECT, ""), "expect: Field required"),
        (SOUND.replace("during = {}", ""), "expect.fewest.during: Field required"),
        (SOUND.replace("before = { follower = 1 }", "before = {}"), "expect.fewest.before: "),
        (SOUND.replace("after = { follower = 1 }", "after = {}"), "expect.fewest.after: "),
        (SOUND.replace("after = { follower = 1 }", "after = { follower = 0 }"), "expect.fewest.after.follower"),
        (SOUND.replace("after = { follower = 1 }", "after = { somebody = 1 }"), "expect.fewest.after.somebody"),
        (SOUND + 'label = "a"\n' + REFUSED, "no step is labelled 'b'"),
        (SOUND + 'label = "a"\n[[method]]\ndo = "heal"\nlabel = "a"\n', "two steps have the same label"),
        (
            SOUND + 'label = "b"\n[[method]]\ndo = "heal"\nlabel = "a"\n' + REFUSED,
            "'b' comes before 'a'",
        ),
    ],
)
def test_an_invalid_drill_is_refused_with_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InvalidDrill) as refused:
        load_drill(path)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_only_the_clock_drills_need_clocks_that_can_be_set() -> None:
    assert {name for name, drill in catalogue().items() if drill.needs_clocks} == {"clock-drift", "clock-jump"}


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDrill, match="cannot be read"):
        load_drill(tmp_path / "none.toml")
