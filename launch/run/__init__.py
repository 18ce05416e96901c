"""What every run needs: folder, log, cluster, pool, signals."""
