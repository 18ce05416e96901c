"""Ray itself: calls with deadlines, nodes, addresses, files on nodes, metrics at its agents."""
