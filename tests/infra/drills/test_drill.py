"""A drill is a file: those that come with Palaver are sound, and one that is not is refused in one line."""

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


def test_every_drill_of_the_catalogue_is_sound_and_says_what_it_is_about() -> None:
    drills = catalogue()
    assert len(drills) >= 25
    for name, drill in drills.items():
        assert drill.name == name
        assert drill.hypothesis.endswith("."), name


def test_what_a_drill_breaks_by_killing_a_region_it_starts_again_itself() -> None:
    for name, drill in catalogue().items():
        killed = sum(step.do == "kill" and step.process is None for step in drill.method)
        restarted = sum(step.do == "restart" for step in drill.method)
        assert killed == restarted, name


def test_a_drill_mends_each_disk_that_it_hurts_itself() -> None:
    for name, drill in catalogue().items():
        hurt = {step.named or step.target for step in drill.method if step.do in ("fill-disk", "stall-disk")}
        assert hurt == {step.target for step in drill.method if step.do == "mend-disk"}, name
        assert drill.needs_disks == bool(hurt), name


def test_each_drill_says_how_many_writes_it_must_see_through_every_edge_that_clients_prefer() -> None:
    for name, drill in catalogue().items():
        preferred = {"follower", "other-follower"}
        if drill.load.edges == "all":
            preferred.add("leader")
        fewest = drill.expect.fewest
        assert set(fewest.before) == set(fewest.after) == preferred, name
        # Where nobody is named for the fault, refusals are expected while it lasts.
        assert fewest.during or drill.expect.refused, name


def test_a_drill_in_which_no_edge_takes_a_write_before_the_fault_is_mended_owes_none_while_it_lasts() -> None:
    """What is counted after that is no evidence of the fault."""
    owes_none = {name for name, drill in catalogue().items() if not drill.expect.fewest.during}
    assert owes_none == {"cut-everyone", "restart-all", "two-of-three-lost", "full-disk-followers"}


def test_a_drill_is_found_by_its_name_and_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SOUND)
    assert find_drill(str(path)).name == "mine"
    assert find_drill("kill-region").short
    with pytest.raises(InvalidDrill, match="there is no drill 'kill-nobody'; see `palaver drill list`"):
        find_drill("kill-nobody")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("title = ", "is no TOML"),
        (SOUND + "nonsense = 1\n", "nonsense: Extra inputs"),
        (SOUND.replace('"kill"', '"hug"'), "method.0.do"),
        (SOUND.replace('target = "dead"', 'target = "deaf"'), "step 2: nobody is called 'deaf'"),
        (SOUND + '[[method]]\ndo = "until-phase"\n', "until-phase needs a phase"),
        (SOUND + '[[method]]\ndo = "until-said"\n', "until-said needs what it says"),
        (SOUND + '[[method]]\ndo = "heal"\nsays = "x"\n', "nothing else does"),
        (SOUND + '[[method]]\ndo = "sleep"\n', "sleep needs seconds"),
        (SOUND + '[[method]]\ndo = "drift"\nrate = 0.1\n', "drift needs seconds"),
        (SOUND + '[[method]]\ndo = "drift"\nseconds = 1\n', "drift needs a rate"),
        (SOUND + '[[method]]\ndo = "clock"\n', "clock needs offset_s"),
        (SOUND + '[[method]]\ndo = "clock"\noffset_s = 1e9\n', "method.2.offset_s"),
        (SOUND + '[[method]]\ndo = "promote"\n', "step 3: promote needs the name of a region that was killed"),
        (SOUND + '[[method]]\ndo = "promote"\ntarget = "dead"\n', "step 3: promote needs"),
        (SOUND.replace('"restart"', '"restart"\nleads_etcd = true'), "leads_etcd is for the kill of a whole region"),
        (SOUND.replace('"kill"', '"kill"\nprocess = "view"\nleads_etcd = true'), "leads_etcd is for the kill"),
        (SOUND + '[[method]]\ndo = "fill-disk"\nprocess = "ledger"\n', "fill-disk takes a region, and no process"),
        (SOUND + '[[method]]\ndo = "mend-disk"\nstall_ms = 300\n', "stall_ms is for stall-disk"),
        (SOUND + '[[method]]\ndo = "stall-disk"\nstall_ms = 20000\n', "method.2.stall_ms"),
        (f'title = "T"\nhypothesis = "H."\nmethod = []\n{EXPECT}', "method"),
        (f'title = "T"\nhypothesis = "H."\n{EXPECT}[[method]]\ndo = "until-writes"\n', "no step does anything"),
        (SOUND.replace(EXPECT, ""), "expect: Field required"),
        (SOUND.replace("during = {}", ""), "expect.fewest.during: Field required"),
        (SOUND.replace("before = { follower = 1 }", "before = {}"), "expect.fewest.before: "),
        (SOUND.replace("after = { follower = 1 }", "after = {}"), "expect.fewest.after: "),
        (SOUND.replace("after = { follower = 1 }", "after = { follower = 0 }"), "expect.fewest.after.follower"),
        (SOUND.replace("after = { follower = 1 }", "after = { somebody = 1 }"), "expect.fewest.after.somebody"),
        (SOUND + 'label = "a"\n' + REFUSED, "no step is labelled 'b'"),
        (SOUND + 'label = "a"\n[[method]]\ndo = "heal"\nlabel = "a"\n', "two steps have one label"),
        (
            SOUND + 'label = "b"\n[[method]]\ndo = "heal"\nlabel = "a"\n' + REFUSED,
            "'b' comes before 'a'",
        ),
    ],
)
def test_an_unsound_drill_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InvalidDrill) as refused:
        load_drill(path)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_which_drills_need_clocks_that_can_be_set() -> None:
    assert {name for name, drill in catalogue().items() if drill.needs_clocks} == {"clock-drift", "clock-jump"}


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDrill, match="cannot be read"):
        load_drill(tmp_path / "none.toml")
