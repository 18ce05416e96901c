"""`make bench`: every benchmark with a goal, one after the other, and what came of them."""
