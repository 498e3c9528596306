import pytest

from tests.sync.merkle.mutations import MUTATIONS, Mutation, applied


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.name)
def test_a_broken_rule_is_detected(mutation: Mutation) -> None:
    for test in mutation.caught_by:
        with applied(mutation):
            assert fails(test), f"{test.__name__} passes although {mutation.name}"


def fails(test: object) -> bool:
    """Whether a test fails. A broken function may also violate an assertion of the package, or its callers' types."""
    assert callable(test)
    try:
        test()
    except (Exception, pytest.fail.Exception):  # noqa: BLE001 - any failure is a detection
        return True
    return False
