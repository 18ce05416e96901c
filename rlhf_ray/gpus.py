"""Whether torch can use this machine's GPUs, and why not: of the driver and torch's build.

Nothing here imports torch or starts CUDA, so that a command can ask before it starts anything.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.errors import ConfigError

# Of bfloat16 and of the attention kernels: Ampere (A100, A10) and newer.
LEAST_CAPABILITY = (8, 0)


@dataclass(frozen=True, kw_only=True)
class Card:
    """One GPU.

    Attributes:
        capability: Compute capability, major and minor.
    """

    name: str
    capability: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Driver:
    """The NVIDIA driver and the GPUs that it shows.

    Attributes:
        version: Such as `580.95.05`.
        cuda: The newest CUDA that it knows, major and minor.
    """

    version: str
    cuda: tuple[int, int]
    cards: tuple[Card, ...]


@dataclass(frozen=True, kw_only=True)
class TorchBuild:
    """What torch was built for.

    Attributes:
        cuda: Major and minor; None for a build without CUDA.
    """

    version: str
    cuda: tuple[int, int] | None


def read_driver() -> Driver | None:
    """The driver of this machine, by NVML; None where none answers, or nothing can ask it.

    Raises:
        ConfigError: It answers, but not for one of its cards.
    """
    try:
        import pynvml
    except ModuleNotFoundError:  # it comes with the gpu extra
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
        ]
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        return Driver(
            version=pynvml.nvmlSystemGetDriverVersion(),
            cuda=(cuda // 1000, cuda % 1000 // 10),
            cards=tuple(
                Card(
                    name=pynvml.nvmlDeviceGetName(handle),
                    capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
                )
                for handle in handles
            ),
        )
    except pynvml.NVMLError as error:  # a card that fell off the bus, say
        raise ConfigError(
            f"the NVIDIA driver must answer for every card, got {error}; see nvidia-smi"
        ) from error
    finally:
        pynvml.nvmlShutdown()


def read_torch_build() -> TorchBuild | None:
    """What the installed torch says of itself; None where it is not installed."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    source = ast.parse(Path(spec.origin).with_name("version.py").read_text())
    said: dict[str, object] = {}
    for node in source.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)):
                said[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=value)):
                said[name] = value
    cuda = said["cuda"]
    return torch_build(str(said["__version__"]), None if cuda is None else str(cuda))


def torch_build(version: str, cuda: str | None) -> TorchBuild:
    """Of `torch.__version__` and `torch.version.cuda`."""
    if cuda is None:
        return TorchBuild(version=version, cuda=None)
    major, minor = cuda.split(".")[:2]
    return TorchBuild(version=version, cuda=(int(major), int(minor)))


def cuda_fault(torch: TorchBuild, driver: Driver | None) -> str | None:
    """Why torch cannot compute on GPUs here, in words; None where nothing speaks against it."""
    if torch.cuda is None:
        return (
            f"torch {torch.version} is a build for CPUs: install rlhf-ray[gpu] in an environment "
            "of its own"
        )
    if driver is None:
        return "no NVIDIA driver answers (`nvidia-smi` shows one that works)"
    # Within a major version any driver serves any build (CUDA minor version compatibility).
    if driver.cuda[0] < torch.cuda[0]:
        return (
            f"the NVIDIA driver {driver.version} knows CUDA up to {_dotted(driver.cuda)}, but "
            f"torch {torch.version} is built for CUDA {_dotted(torch.cuda)}: install a driver for "
            f"CUDA {torch.cuda[0]} or newer"
        )
    if not driver.cards:
        return f"the NVIDIA driver {driver.version} shows no GPU"
    faults = [card_fault(card) for card in driver.cards]
    # Of several kinds the roles may be given the newer ones; a rank looks at its own.
    return faults[0] if all(faults) else None


def card_fault(card: Card) -> str | None:
    """Why a card is none to train or generate on; None where it is."""
    if card.capability >= LEAST_CAPABILITY:
        return None
    return (
        f"{card.name} has compute capability {_dotted(card.capability)}: bfloat16 and the "
        f"attention kernels need {_dotted(LEAST_CAPABILITY)} (A100, A10) or newer"
    )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
