import uuid

import pytest

from services.view.cache import (
    Applied,
    Flush,
    Invalidation,
    MessageMalformed,
    decode_message,
    encode_applied,
    encode_flush,
    encode_invalidations,
    thread_key,
)


def test_messages_come_back_as_they_were() -> None:
    moved = [Invalidation(site=uuid.uuid4(), key="ä/?", version=2**40)]
    assert decode_message(encode_invalidations(moved)) == moved
    assert decode_message(encode_flush(7)) == Flush(generation=7)
    assert decode_message(encode_applied("main.1.00", 5)) == Applied(position="main.1.00", fresh_at_us=5)


@pytest.mark.parametrize("data", [b"", b"1", b"{}", b"[1]", b'[{"site":"x","key":"k","version":1}]', b'{"flush":"x"}'])
def test_a_message_of_somebody_else_is_refused(data: bytes) -> None:
    with pytest.raises(MessageMalformed):
        decode_message(data)


def test_keys_differ_by_generation_site_and_thread() -> None:
    one, other = uuid.uuid4(), uuid.uuid4()
    keys = {thread_key(g, s, k) for g in (1, 2) for s in (one, other) for k in ("a", "b")}
    assert len(keys) == 8
