"""The learners' process group: weights from the driver to all, gradients from all to the driver."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import TCPStore

from burnish.errors import BurnishError, one_line
from burnish.system.environment import environment_variables

DRIVER = 0
"""The driver's rank."""


class GroupBroken(Exception):
    """A member of the group is gone or does not answer."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the members of a group find each other.

    Attributes:
        host, port: the driver's, at which its store listens.
        size: number of members.
        limit: seconds that a member may let the others wait.
    """

    host: str
    port: int
    size: int
    limit: float


class LearnerGroup:
    """A process group of torch.distributed (NCCL for parameters on GPUs, else gloo), for what learners exchange.

    Args:
        rank: this process's number in the group.
        address: this machine's in the cluster: the group listens on its interface alone.
        listening: the driver's socket, at the meeting's host and port.
    """

    def __init__(
        self, rank: int, meeting: Meeting, address: str, *, cuda: bool, listening: socket.socket | None = None
    ) -> None:
        refuse_other_group()
        self.size = meeting.size
        timeout = timedelta(seconds=meeting.limit)
        with environment_variables(_interface(address)), _broken("meet the other learners"):
            store = TCPStore(
                meeting.host, meeting.port, world_size=meeting.size, is_master=rank == DRIVER, timeout=timeout,
                wait_for_workers=False, master_listen_fd=None if listening is None else listening.detach(),
            )  # fmt: skip
            hook = sys.excepthook
            try:
                dist.init_process_group(
                    "nccl" if cuda else "gloo", store=store, rank=rank, world_size=meeting.size, timeout=timeout
                )
            except BaseException:
                self.leave()
                raise
            finally:
                sys.excepthook = hook  # torch puts one of its own on top, each time, and never takes it away

    def share_weights(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every member the driver's weights. Raises GroupBroken."""
        with _broken("share the weights"):
            _wait([dist.broadcast(one.detach(), DRIVER, async_op=True) for one in parameters])

    def add_up(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add the members' gradients up, in the driver; those that no member has stay None. Raises GroupBroken."""
        device = parameters[0].device
        has = torch.tensor([one.grad is not None for one in parameters], dtype=torch.int32, device=device)
        with _broken("add up the gradients"):
            dist.all_reduce(has)
            used = [one for one, count in zip(parameters, has.tolist(), strict=True) if count]
            _wait([dist.reduce(_gradient(one), DRIVER, async_op=True) for one in used])

    def leave(self) -> None:
        """Leave the group: whoever waits for this process is told at once."""
        with suppress(Exception):  # what is broken cannot be closed in order
            dist.destroy_process_group()


def refuse_other_group() -> None:
    """Raise BurnishError if this process is in a group of torch.distributed, of which it can have only one."""
    if dist.is_initialized():
        raise BurnishError(
            "backend.learners: this program uses torch.distributed already; leave its process group, or set learners = 1"
        )


def listening_at(address: str) -> socket.socket:
    """Return a socket that listens at an address of this machine, on a free port."""
    return socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Return a parameter's gradient, zeros where this member has none."""
    parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()
    return parameter.grad


def _wait(works: Sequence[Any]) -> None:
    for work in works:
        work.wait()


def _interface(address: str) -> dict[str, str]:
    """Return variables that name the network interface of an address: gloo and NCCL may take another by themselves."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    return {}


@contextmanager
def _broken(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's own; the store's and NCCL's are classes of it
        raise GroupBroken(f"could not {what}: {one_line(error)[:300]}") from error
