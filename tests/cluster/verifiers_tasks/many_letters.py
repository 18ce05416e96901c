"""A taskset of the package verifiers, for a Python that has it: the letter e is rewarded."""

import verifiers.v1 as vf


class Task(vf.Task[vf.TaskData]):
    @vf.reward(weight=1.0)
    async def letters(self, trace: vf.Trace) -> float:
        return trace.last_reply.count("e") / (1 + len(trace.last_reply))


class Taskset(vf.Taskset[Task, vf.TasksetConfig]):
    def load(self) -> list[Task]:
        prompts = [f"Once upon a time there were {n} cats" for n in range(4)]
        return [Task(vf.TaskData(prompt=prompt), self.config.task) for prompt in prompts]


__all__ = ["Taskset"]
