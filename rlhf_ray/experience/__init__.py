"""From rollouts, scores and what models say of them to what an update is given: pure."""
