"""The training loops: asyncio programs over the roles of `rlhf_ray.roles`."""
