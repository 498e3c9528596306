from hypothesis import settings

from tests.sync.merkle.machine import ViewAndLedger

TestViewAndLedger = ViewAndLedger.TestCase
TestViewAndLedger.settings = settings(max_examples=30, stateful_step_count=30, derandomize=True)
