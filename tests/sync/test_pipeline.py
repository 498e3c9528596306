import pytest

from tests.sync.rig import Rig, differences, writing

pytestmark = pytest.mark.integration


async def test_a_comment_reaches_the_view_with_its_counts(rig: Rig) -> None:
    rig.create_slot()
    rig.fence()
    async with rig.replicating(), writing(rig) as writer:
        thread = await writer.create_thread()
        root = await writer.post(thread)
        await writer.post(thread, parent=root)
        await rig.caught_up()
    assert differences(rig) == []
    assert rig.view_sql("SELECT count FROM threads") == [(2,)]
    assert rig.view_sql("SELECT reply_count FROM comments WHERE id = %s", root) == [(1,)]
