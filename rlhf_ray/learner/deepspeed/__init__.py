"""The engine that trains today: DeepSpeed with ZeRO, behind the Protocols of `learner.engine`."""
