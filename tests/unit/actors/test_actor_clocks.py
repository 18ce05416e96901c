"""Clocks of other machines: as far ahead as question, stamp and answer leave it."""

from hypothesis import given
from hypothesis import strategies as st

from actors.pool.clocks import KEPT, Clocks

delays_ns = st.integers(0, 10**9)


@given(st.integers(-(10**15), 10**15), st.lists(st.tuples(delays_ns, delays_ns), min_size=1))
def test_a_clock_is_known_to_half_of_the_least_it_took_to_ask(ahead_ns, ways):
    clocks, now_ns = Clocks(own="here"), 0
    for there_ns, back_ns in ways:
        clocks.heard(
            "there",
            asked_ns=now_ns,
            stamped_ns=now_ns + there_ns + ahead_ns,
            answered_ns=now_ns + there_ns + back_ns,
        )
        now_ns += there_ns + back_ns
    kept = ways[-KEPT:]
    bound_ns = (min(there for there, _ in kept) + min(back for _, back in kept)) / 2
    assert abs(clocks.ahead_ns("there") - ahead_ns) <= bound_ns + 1


def test_a_clock_that_has_drifted_is_what_it_was_last():
    clocks = Clocks(own="here")
    clocks.heard("there", asked_ns=0, stamped_ns=0, answered_ns=10)
    clocks.heard("there", asked_ns=0, stamped_ns=100, answered_ns=10)
    assert clocks.ahead_ns("there") == 95


def test_our_own_clock_is_not_ahead():
    clocks = Clocks(own="here")
    clocks.heard("here", asked_ns=0, stamped_ns=100, answered_ns=10)
    assert clocks.ahead_ns("here") == 0
