"""Tests the parser of a SOCKS client's first bytes, with every split of the bytes."""

import pytest

from infra.relay.socks import NotSocks, Request, read_methods, read_request

BY_NAME = b"\x05\x01\x00\x03\x06B.etcd\x09\x4c"
BY_IPV4 = b"\x05\x01\x00\x01\x7f\x00\x00\x01\x09\x4c"
BY_IPV6 = b"\x05\x01\x00\x04" + bytes(15) + b"\x01\x09\x4c"


@pytest.mark.parametrize(
    ("data", "destination"), [(BY_NAME, "b.etcd:2380"), (BY_IPV4, "127.0.0.1:2380"), (BY_IPV6, "::1:2380")]
)
def test_a_request_is_parsed_when_its_last_byte_has_arrived(data: bytes, destination: str) -> None:
    for length in range(len(data)):
        assert read_request(data[:length]) is None
    assert read_request(data + b"early") == Request(destination=destination, length_bytes=len(data))


def test_methods_are_parsed_when_their_last_byte_has_arrived() -> None:
    assert [read_methods(b"\x05\x02\x00\x02"[:length]) for length in range(5)] == [None] * 4 + [4]


@pytest.mark.parametrize("data", [b"GET /", b"\x04\x01", b"\x05\x01\x02"])
def test_other_protocols_and_passwords_are_refused(data: bytes) -> None:
    with pytest.raises(NotSocks):
        read_methods(data)


@pytest.mark.parametrize("data", [b"\x05\x02" + BY_IPV4[2:], b"\x05\x01\x00\x09\x00", b"\x04" + BY_IPV4[1:]])
def test_other_requests_are_refused(data: bytes) -> None:
    with pytest.raises(NotSocks):
        read_request(data)
